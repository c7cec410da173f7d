// Classify images with model.onnx in Node: onnxruntime-node, and sharp as the decoder.
//
// node classify.mjs model.onnx photo.jpg …
// node classify.mjs model.onnx --golden build/deploy/golden

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import ort from "onnxruntime-node";
import sharp from "sharp";

/** Decode to uint8 RGB: upright, in sRGB, transparency over the background (`white`, `black` or `#RRGGBB`). */
async function decode(content, background) {
  const image = sharp(content).autoOrient().toColourspace("srgb").ensureAlpha().raw({ depth: "uchar" });
  const { data, info } = await image.toBuffer({ resolveWithObject: true });
  const colour = { white: "#ffffff", black: "#000000" }[background] ?? background;
  const behind = [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));
  const rgb = new Uint8Array(3 * info.width * info.height);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    const alpha = data[from + 3];
    for (let n = 0; n < 3; n++) rgb[to++] = Math.round((data[from + n] * alpha + behind[n] * (255 - alpha)) / 255);
  }
  return { rgb, width: info.width, height: info.height };
}

/** Read the strings that a model's file states of itself: metadata_props of ModelProto, which onnxruntime-node does not show. */
function metadata(model) {
  const found = {};
  for (const { field, bytes } of fields(model)) {
    if (field !== 14) continue;
    const [key, value] = [...fields(bytes)].map((entry) => Buffer.from(entry.bytes).toString("utf8"));
    found[key] = value;
  }
  return found;
}

/** List the fields of a protobuf message that have a length; skip the others. */
function* fields(message) {
  let at = 0;
  const number = () => {
    let [value, scale, byte] = [0, 1, 0];
    do {
      byte = message[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte & 128);
    return value;
  };
  while (at < message.length) {
    const tag = number();
    const [field, kind] = [Math.floor(tag / 8), tag % 8];
    if (kind === 0) number();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else {
      const size = number();
      yield { field, bytes: message.subarray(at, at + size) };
      at += size;
    }
  }
}

async function open(path) {
  const content = await readFile(path);
  const facts = metadata(content);
  const [classes, background] = [JSON.parse(facts["convoy.classes"]), facts["convoy.background"] ?? "white"];
  const session = await ort.InferenceSession.create(content);
  return async (file) => {
    const { rgb, width, height } = await decode(await readFile(file), background);
    const image = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
    const { probabilities } = await session.run({ image }, ["probabilities"]);
    return Object.fromEntries(classes.map((name, n) => [name, probabilities.data[n]]));
  };
}

const best = (answer) => Object.entries(answer).reduce((one, other) => (other[1] > one[1] ? other : one));

async function replay(classify, folder) {
  const golden = JSON.parse(await readFile(join(folder, "golden.json"), "utf8"));
  let [same, largest] = [0, 0];
  for (const image of golden.images) {
    const answer = await classify(join(folder, image.file));
    const gap = Math.max(...golden.classes.map((name, n) => Math.abs(answer[name] - image.probabilities[n])));
    same += best(answer)[0] === image.class && gap <= golden.max_probability_gap;
    largest = Math.max(largest, gap);
  }
  console.log(`${same} of ${golden.images.length} golden images as measured, largest probability gap ${largest.toExponential(1)}`);
  return same === golden.images.length;
}

const [model, ...rest] = process.argv.slice(2);
if (!rest.length) {
  console.error("node classify.mjs model.onnx photo.jpg …   or   --golden FOLDER");
  process.exit(2);
}
const classify = await open(model);
if (rest[0] === "--golden") process.exit((await replay(classify, rest[1])) ? 0 : 1);
for (const file of rest) {
  const [name, probability] = best(await classify(file));
  console.log(`${file}: ${name} ${probability.toFixed(4)}`);
}
