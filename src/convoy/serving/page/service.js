// The engine of `convoy serve`: the service at this page's address answers.

import { Refused, describe, make, percent, start } from "./app.js";

const home = new URL("../", import.meta.url);
let token = "";

/** Send a request to the service; its own reason is that of a refusal. */
async function call(path, blob) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (blob) headers["Content-Type"] = blob.type || "application/octet-stream";
  const options = { method: blob ? "POST" : "GET", headers, body: blob, credentials: "omit" };
  const answer = await fetch(new URL(path, home), options).catch(() => {
    throw new Refused("The service does not answer. It may have been stopped, or the connection is lost.");
  });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  if (answer.status === 401) signIn();
  const reason = error?.reason ?? `The service answered ${answer.status} ${answer.statusText}.`;
  throw Object.assign(new Refused(reason), { code: error?.code });
}

function signIn() {
  const [form, field] = [document.getElementById("sign-in"), document.getElementById("token")];
  form.hidden = false;
  field.focus();
  form.onsubmit = async (event) => {
    event.preventDefault();
    token = field.value;
    form.hidden = true;
    document.getElementById("problem").textContent = "";
    await describe(engine);
    engine.again();
  };
}

export const engine = {
  privacy: "Images are sent to this service for the answer.",

  async describe() {
    const { model, version, run_id: run, sha256, classes } = await (await call("model")).json();
    return [title(model, version), `${classes.length} classes`, run && `run ${run}`, `sha256 ${sha256.slice(0, 12)}`].filter(Boolean).join(" · ");
  },

  async answer(blob) {
    const [answer, seen] = await Promise.all([
      call("predict?top_k=10", blob).then((one) => one.json()),
      call("seen", blob).then((one) => one.blob()).then(pixels).catch(() => null),
    ]);
    const details = [
      `Answered by ${title(answer.model, answer.version)}`,
      `decoded in ${answer.ms.decode.toFixed(1)} ms`,
      `inference ${answer.ms.inference.toFixed(1)} ms`,
    ];
    return {
      classes: Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]),
      uncertain: answer.abstained,
      details: details.join(", "),
      pixels: seen,
    };
  },

  explain: {
    title: "What the answer depends on",
    text: "A gray patch covers one part of the image after another. Red: the class is less probable without that part. Blue: it is more probable.",
    button: "Compute heat map",
    async run(answer, blob, into) {
      const [name] = answer.classes[0];
      const path = `occlusion?class=${encodeURIComponent(name)}`;
      const answered = await call(path, blob).catch((error) => {
        if (error.code !== "timed_out") throw error;
        return call(`${path}&grid=4`, blob); // a large network: a quarter of the images
      });
      const map = await answered.json();
      const drops = map.drops.flat();
      const most = drops.indexOf(Math.max(...drops));
      const [row, column] = [Math.floor(most / map.drops.length) + 1, (most % map.drops.length) + 1];
      const found =
        drops[most] > 0
          ? `${name} depends most on row ${row}, column ${column} of ${map.drops.length}: covered, its probability ` +
            `falls from ${percent(map.probability)} to ${percent(map.probability - drops[most])}.`
          : `No covered part makes ${name} less probable.`;
      const canvas = make("canvas", "", { id: "heat", role: "img", "aria-label": `Heat map. ${found}` });
      overlay(canvas, answer.pixels, map.drops);
      into.append(canvas, make("p", found));
    },
  },
};

/** Name a model: `convoy/7`, or the last part of a file's path. */
const title = (model, version) => (version ? model : model.split(/[/\\]/).at(-1));

/** Read a PNG as ImageData. */
async function pixels(png) {
  const bitmap = await createImageBitmap(png);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** Draw the square that the network sees with the drops over it, the strongest opaque to two thirds. */
function overlay(canvas, seen, drops) {
  const [side, cells] = [480, drops.length];
  [canvas.width, canvas.height] = [side, side];
  const context = canvas.getContext("2d");
  if (seen) {
    const square = new OffscreenCanvas(seen.width, seen.height);
    square.getContext("2d").putImageData(seen, 0, 0);
    context.imageSmoothingEnabled = false;
    context.filter = "grayscale(0.8)";
    context.drawImage(square, 0, 0, side, side);
    context.filter = "none";
  }
  const strongest = Math.max(...drops.flat().map(Math.abs)) || 1;
  const edge = (n) => Math.round((n * side) / cells);
  drops.forEach((row, y) =>
    row.forEach((drop, x) => {
      context.fillStyle = `rgb(${drop > 0 ? "220 30 30" : "30 90 220"} / ${(0.66 * Math.abs(drop)) / strongest})`;
      context.fillRect(edge(x), edge(y), edge(x + 1) - edge(x), edge(y + 1) - edge(y));
    }),
  );
}

start(engine);
