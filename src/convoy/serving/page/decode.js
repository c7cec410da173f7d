// Decodes an image to the pixels that the model takes, as convoy/images/decode.py does.

const MOST_PIXELS = 89_478_485;
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const IGNORED = ["gAMA", "cHRM", "cICP"]; // browsers brighten by them; Pillow, with which the model was trained, does not

/** Make an error whose reason is for the user. */
export const refused = (reason) => Object.assign(new Error(reason), { expected: true });

/** Decode a file: upright by EXIF, colours to sRGB by the ICC profile, transparency over a background. */
export async function decode(blob, background) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "default", premultiplyAlpha: "default" };
  const bitmap = await createImageBitmap(await plain(blob), options).catch(() => {
    throw refused("This is not an image that your browser can read. Try a JPEG or PNG.");
  });
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    throw refused(`The image has ${width} × ${height} pixels; the limit is ${MOST_PIXELS.toLocaleString("en")} pixels. Make it smaller.`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, colorSpace: "srgb", willReadFrequently: true });
  context.fillStyle = background;
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return { rgb, width, height };
}

/** Leave out what a PNG states of its colours besides an ICC profile. */
async function plain(blob) {
  const head = new Uint8Array(await blob.slice(0, PNG.length).arrayBuffer());
  if (!PNG.every((byte, n) => head[n] === byte)) return blob;
  const bytes = await blob.arrayBuffer();
  const view = new DataView(bytes);
  const parts = [bytes.slice(0, PNG.length)];
  for (let at = PNG.length; at + 12 <= view.byteLength; ) {
    const end = at + 12 + view.getUint32(at);
    const kind = String.fromCharCode(...new Uint8Array(bytes, at + 4, 4));
    if (kind === "IDAT") return new Blob([...parts, bytes.slice(at)]);
    if (!IGNORED.includes(kind)) parts.push(bytes.slice(at, end));
    at = end;
  }
  return blob;
}
