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

/** Nested values of levels. */
export function rowOf(levels, { height, width, channels, low, high, hasChannelAxis }) {
  const valueAt = (at) => Math.round((low + levels[at] * (high - low)) * 1e4) / 1e4;
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

/** Shares by pixel, summed over the channels. */
export function byPixel(map, { height, width, channels }) {
  const flat = map.flat(Infinity);
  return Array.from({ length: height * width }, (_, at) => {
    let sum = 0;
    for (let channel = 0; channel < channels; channel += 1) sum += flat[at * channels + channel];
    return sum;
  });
}

/** Fill an ImageData: levels by channel, or a heat map when there is one level a pixel and isHeat is set. */
export function paint(context, levels, { height, width, channels }, isHeat = false) {
  const picture = context.createImageData(width, height);
  for (let at = 0; at < height * width; at += 1) {
    const rgb = isHeat ? heat(levels[at]) : channels >= 3
      ? [0, 1, 2].map((channel) => 255 * levels[at * channels + channel])
      : Array(3).fill(255 * levels[at * channels]);
    picture.data.set([...rgb, 255], at * 4);
  }
  context.putImageData(picture, 0, 0);
}

export function Picture({ title, note, levels, layout, isHeat = false }) {
  const element = useRef();
  useEffect(() => { paint(element.current.getContext("2d"), levels, layout, isHeat); }, [levels, layout, isHeat]);
  return html`<figure><canvas class="pixels" ref=${element} width=${layout.width} height=${layout.height} role="img" aria-label=${title} style=${{ "--aspect": `${layout.width} / ${layout.height}` }}></canvas>
    <figcaption><b>${title}</b>${note ? html` · ${note}` : ""}</figcaption></figure>`;
}
