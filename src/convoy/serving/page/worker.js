// Decodes images and runs the verified model.onnx, in a thread of its own.

import { decode, refused } from "./decode.js";
import * as ort from "../onnxruntime/ort.wasm.min.mjs";

const home = new URL("../", import.meta.url);
const MOST_MAPS = 12;
let opened = null;

/** Load facts and model; the outputs for feature maps are appended to the model's bytes, which protobuf reads as one graph. */
async function open() {
  const began = performance.now();
  ort.env.wasm.numThreads = 1; // more need headers that a static page cannot set
  ort.env.wasm.wasmPaths = new URL("onnxruntime/", home).href;
  const [facts, model, outputs] = await Promise.all([
    get("demo.json").then((answer) => answer.json()),
    get("model.onnx").then((answer) => answer.arrayBuffer()),
    get("outputs.pb").then((answer) => answer.arrayBuffer()),
  ]);
  const bytes = new Uint8Array(await new Blob([model, outputs]).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { facts, session, ms: performance.now() - began };
}

async function get(name) {
  const answer = await fetch(new URL(name, home), { cache: "no-cache" }); // a demo that was built anew is loaded anew
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** Classify an image; `pixels` is what the network sees, `maps` are channels of its convolutions. */
async function answer(blob) {
  const { facts, session } = await opened;
  const began = performance.now();
  const { rgb, width, height } = await decode(blob, facts.background);
  const decoded = performance.now();
  const outputs = await session.run({ image: new ort.Tensor("uint8", rgb, [1, height, width, 3]) });
  const done = performance.now();
  const classes = facts.classes.map((name, n) => [name, outputs.probabilities.data[n]]);
  if (!classes.every(([, probability]) => Number.isFinite(probability))) throw refused("The model outputs NaN for this image.");
  return {
    classes: classes.sort((one, other) => other[1] - one[1]),
    pixels: facts.seen ? planes(outputs[facts.seen]) : null,
    maps: facts.maps.map((map) => ({ name: map.name, operations: map.operations, ...channels(outputs[map.output]) })),
    size: [width, height],
    ms: { decode: decoded - began, inference: done - decoded },
  };
}

/** Turn float32 (N, 3, P, P) in 0..255 into a picture. */
function planes({ data, dims: [, , height, width] }) {
  const [picture, area] = [new ImageData(width, height), height * width];
  for (let n = 0; n < area; n++) {
    for (let plane = 0; plane < 3; plane++) picture.data[4 * n + plane] = data[plane * area + n];
    picture.data[4 * n + 3] = 255;
  }
  return picture;
}

/** Turn float32 (N, C, H, W) into gray pictures of the first image's strongest channels, each scaled to its own range. */
function channels({ data, dims: [, count, height, width] }) {
  const area = height * width;
  const strongest = Array.from({ length: count }, (_, channel) => {
    const values = data.subarray(channel * area, (channel + 1) * area);
    let [least, most] = [Infinity, -Infinity];
    for (const value of values) [least, most] = [Math.min(least, value), Math.max(most, value)];
    return { channel, values, least, most };
  }).sort((one, other) => other.most - one.most);
  return {
    shape: [count, height, width],
    channels: strongest.slice(0, MOST_MAPS).map(({ channel, values, least, most }) => {
      const picture = new ImageData(width, height);
      const scale = 255 / (most - least || 1);
      values.forEach((value, n) => {
        picture.data.fill(scale * (value - least), 4 * n, 4 * n + 3);
        picture.data[4 * n + 3] = 255;
      });
      return { channel, pixels: picture };
    }),
  };
}

const ways = {
  async open() {
    opened ??= open();
    const { facts, ms } = await opened;
    return { name: facts.name, runtime: ort.env.versions.web, ms };
  },
  answer: ({ blob }) => ((opened ??= open()), answer(blob)),
};

addEventListener("message", async ({ data: { id, kind, ...rest } }) => {
  try {
    postMessage({ id, result: await ways[kind](rest) });
  } catch (error) {
    postMessage({ id, reason: String(error.message ?? error), expected: Boolean(error.expected) });
  }
});
