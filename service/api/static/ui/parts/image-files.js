// Image files: found in what was chosen or dropped, and read as the service reads them.

/** Files of a drop; those of dropped folders too. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(filesBelow))).flat();
}

async function filesBelow(entry) {
  if (entry.isFile) return [await new Promise((found, failed) => { entry.file(found, failed); })];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    // A reader gives a hundred at a time.
    const some = await new Promise((found, failed) => { reader.readEntries(found, failed); });
    if (!some.length) return files;
    files.push(...(await Promise.all(some.map(filesBelow))).flat());
  }
}

/**
 * Levels from 0 to 1 of an image file, upright as its Exif data say; of another size than the model's it is brought to that.
 * Of an image of the model's size they are the service's own, to the bit.
 */
export async function levelsOfFile(file, { height, width, channels }) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const bytes = bytesOf(bitmap, width, height);
  bitmap.close();
  const levels = new Float64Array(height * width * channels);
  for (let at = 0; at < height * width; at += 1) {
    const [red, green, blue, alpha] = bytes.subarray(at * 4, at * 4 + 4);
    // Grey as Pillow makes it, in whole numbers.
    const parts = channels >= 3 ? [red, green, blue, alpha] : [(red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16];
    for (let channel = 0; channel < channels; channel += 1) levels[at * channels + channel] = (parts[channel] ?? 255) / 255;
  }
  return levels;
}

function bytesOf(bitmap, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const bytes = context.getImageData(0, 0, width, height).data;
  const hasSize = bitmap.width === width && bitmap.height === height;
  const isOpaque = bytes.every((byte, at) => at % 4 !== 3 || byte === 255);
  return hasSize && !isOpaque ? untouchedBytes(bitmap) ?? bytes : bytes;
}

let gl;

/** Bytes of an image with transparent pixels, whose colours a canvas would change; null where WebGL is missing. */
function untouchedBytes(bitmap) {
  gl ??= new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl) return null;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const bytes = new Uint8Array(bitmap.width * bitmap.height * 4);
  gl.readPixels(0, 0, bitmap.width, bitmap.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
  gl.deleteTexture(texture);
  return bytes;
}
