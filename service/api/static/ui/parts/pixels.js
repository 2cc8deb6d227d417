// Images of a model: nested arrays of its own values, to and from what a canvas shows.
import { html, useEffect, useRef } from "./base.js";

/** {height, width, channels, low, high} of an image schema. */
export function layoutOf(schema) {
  const [height, width, channels = 1] = schema.row_shape;
  const [low, high] = schema.value_range ?? [0, 1];
  return { height, width, channels, low, high, hasChannelAxis: schema.row_shape.length === 3 };
}

/** Levels from 0 to 1, in rows of pixels, of nested values. */
export function levelsOf(row, { low, high }) {
  return Float32Array.from(row.flat(Infinity), (value) => Math.min(1, Math.max(0, (value - low) / (high - low || 1))));
}

/** Nested values of levels, the numbers of type float32 that the service makes of such an image. */
export function rowOf(levels, { height, width, channels, low, high, hasChannelAxis }) {
  const valueAt = (at) => Number(Math.fround(low + levels[at] * (high - low)).toPrecision(9));
  return Array.from({ length: height }, (_, y) => Array.from({ length: width }, (_unused, x) => {
    const at = (y * width + x) * channels;
    return hasChannelAxis ? Array.from({ length: channels }, (_more, channel) => valueAt(at + channel)) : valueAt(at);
  }));
}

const STOPS = [[13, 8, 40], [84, 15, 109], [187, 55, 84], [249, 142, 9], [252, 255, 164]];

/** A colour of the heat scale for a level from 0 to 1; the scale grows lighter, so that it also tells in grey. */
export function heat(level) {
  const place = Math.min(0.9999, Math.max(0, level)) * (STOPS.length - 1);
  const at = Math.floor(place);
  return STOPS[at].map((from, channel) => from + (STOPS[at + 1][channel] - from) * (place - at));
}

/** Squared difference of each pixel of two rows, summed over its channels. */
export function pixelErrors(row, other, { height, width, channels }) {
  const [one, two] = [row.flat(Infinity), other.flat(Infinity)];
  const errors = new Float32Array(height * width);
  one.forEach((value, at) => { errors[Math.floor(at / channels)] += (value - two[at]) ** 2; });
  return errors;
}

/** Fill an ImageData: levels by channel, under a heat map of one level a pixel where there is one. */
export function paint(context, levels, { height, width, channels }, errors = null) {
  const picture = context.createImageData(width, height);
  for (let at = 0; at < height * width; at += 1) {
    const rgb = levels === null ? [0, 0, 0] : channels >= 3 ? [0, 1, 2].map((channel) => 255 * levels[at * channels + channel]) : Array(3).fill(255 * levels[at * channels]);
    const cover = errors === null ? 0 : levels === null ? 1 : Math.min(1, 2 * errors[at]);
    const glow = cover && heat(errors[at]);
    picture.data.set([...rgb.map((part, channel) => (cover ? part + (glow[channel] - part) * cover : part)), 255], at * 4);
  }
  context.putImageData(picture, 0, 0);
}

/** An image; with errors, levels from 0 to 1 of a heat map, that lie over it, or stand alone where levels are null. */
export function Picture({ title, note, levels = null, errors = null, layout }) {
  const element = useRef();
  useEffect(() => { paint(element.current.getContext("2d"), levels, layout, errors); }, [levels, layout, errors]);
  return html`<figure><canvas class="pixels" ref=${element} width=${layout.width} height=${layout.height} role="img" aria-label=${title} style=${{ "--aspect": `${layout.width} / ${layout.height}` }}></canvas>
    <figcaption><b>${title}</b>${note ? html` · ${note}` : ""}</figcaption></figure>`;
}
