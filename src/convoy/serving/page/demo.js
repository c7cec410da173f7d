// The engine of `convoy demo`: the model runs in this browser, in a worker.

import { Refused, make, start } from "./app.js";

const home = new URL("../", import.meta.url);

// Through a blob, so that the worker has this page's Content-Security-Policy: none of its requests leaves this origin.
const code = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
const waiting = new Map();
let asked = 0;

worker.addEventListener("message", ({ data: { id, result, reason, expected } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (reason === undefined) resolve(result);
  else reject(expected ? new Refused(reason) : new Error(reason));
});
worker.addEventListener("error", (event) => {
  for (const { reject } of waiting.values()) reject(new Error(event.message || "the worker did not start"));
  waiting.clear();
});

function ask(message) {
  const id = ++asked;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...message });
  });
}

export const engine = {
  privacy: "The model runs in this browser. No image leaves this device.",

  async describe() {
    const { name, runtime, ms } = await ask({ kind: "open" });
    return `${name} · onnxruntime-web ${runtime}, loaded in ${(ms / 1000).toFixed(1)} s`;
  },

  async answer(blob) {
    const { classes, pixels, maps, ms, size } = await ask({ kind: "answer", blob });
    const details = `${size[0]} × ${size[1]} pixels, decoded in ${ms.decode.toFixed(0)} ms, answered in ${ms.inference.toFixed(0)} ms`;
    return { classes, pixels, maps, details, uncertain: false };
  },

  async golden() {
    const { golden } = await (await fetch(new URL("demo.json", home))).json();
    return golden;
  },

  async replay(progress) {
    const { classes, images, max_probability_gap: limit } = await (await fetch(new URL("golden/golden.json", home))).json();
    let [same, largest] = [0, 0];
    for (const [done, image] of images.entries()) {
      progress(done, images.length);
      const file = await fetch(new URL(`golden/${image.file}`, home));
      const answer = await ask({ kind: "answer", blob: await file.blob() });
      const got = Object.fromEntries(answer.classes);
      const gap = Math.max(...classes.map((name, n) => Math.abs(got[name] - image.probabilities[n])));
      same += answer.classes[0][0] === image.class;
      largest = Math.max(largest, gap);
    }
    const within = largest <= limit ? "within" : "above";
    return `Same class for ${same} of ${images.length} golden images; largest probability gap ${largest.toExponential(1)}, ${within} the limit of ${limit}.`;
  },

  explain: {
    title: "Feature maps",
    text: "What filters of the network make of the image, the strongest maps first. Bright: the filter found its pattern there.",
    run({ maps }, _blob, into) {
      for (const { name, operations, shape, channels } of maps) {
        const [count, height, width] = shape;
        const many = channels.length < count ? `the ${channels.length} strongest of ${count} maps` : `${count} maps`;
        into.append(make("h3", `${name}: ${many}, ${width} × ${height}, after ${operations.join(", ")}`));
        const grid = make("div", "", { class: "maps" });
        for (const { channel, pixels } of channels) {
          const canvas = make("canvas", "", { role: "img", "aria-label": `${name}, map ${channel}`, width, height });
          canvas.getContext("2d").putImageData(pixels, 0, 0);
          grid.append(canvas);
        }
        into.append(grid);
      }
      if (!maps.length) into.append(make("p", "The network has no convolution, so there are no maps."));
    },
  },
};

start(engine);
