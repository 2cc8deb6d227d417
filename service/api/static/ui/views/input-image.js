// An image: drawn by hand, from a file, or a sample.
import { Card, Failure, Tabs, html, useEffect, useMemo, useRef, useState } from "../parts/base.js";
import { layoutOf, levelsOf, paint, rowOf } from "../parts/pixels.js";

export default function ImageInput({ schema, samples, start, onRow }) {
  const layout = useMemo(() => layoutOf(schema), [schema]);
  const blank = () => new Float32Array(layout.height * layout.width * layout.channels);
  const [levels, setLevels] = useState(() => (start ? levelsOf(start, layout) : samples[0] ? levelsOf(samples[0], layout) : blank()));
  const [tab, setTab] = useState("draw");
  const [sample, setSample] = useState(0);
  useEffect(() => { onRow(rowOf(levels, layout)); }, [levels]);
  const takeSample = () => { const next = (sample + 1) % samples.length; setSample(next); setLevels(levelsOf(samples[next], layout)); };
  const noisy = () => setLevels(levels.map((level) => Math.min(1, Math.max(0, level + 0.22 * normal()))));
  return html`<${Card} title="The image" aside=${html`<span class="small muted">${layout.width} × ${layout.height}${layout.channels > 1 ? ` × ${layout.channels}` : ""}</span>`}>
    <${Tabs} label="How to give the image" tabs=${[["draw", "Draw"], ["file", "File"]]} chosen=${tab} onChoose=${setTab} />
    ${tab === "draw" ? html`<${Drawing} layout=${layout} levels=${levels} onLevels=${setLevels} />` : html`<${FromFile} layout=${layout} levels=${levels} onLevels=${setLevels} />`}
    <div class="row" style=${{ marginTop: "14px" }}>
      ${samples.length > 0 && html`<button type="button" class="button small" onClick=${takeSample}>Another sample</button>`}
      <button type="button" class="button small" onClick=${noisy}>Add noise</button>
      <button type="button" class="button small" onClick=${() => setLevels(levels.map((level) => 1 - level))}>Swap light and dark</button>
      <button type="button" class="button small" onClick=${() => setLevels(blank())}>Clear</button></div><//>`;
}

/** A number of the standard normal distribution (Box and Muller). */
function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

function Drawing({ layout, levels, onLevels }) {
  const element = useRef();
  const work = useRef(levels);
  const last = useRef(null);
  const [pen, setPen] = useState({ size: 1, erases: false, colour: "#ffffff" });
  const [cursor, setCursor] = useState(null);
  work.current = levels;
  const draw = () => {
    const context = element.current.getContext("2d");
    paint(context, work.current, layout);
    if (cursor) {
      context.fillStyle = "rgb(120 150 255 / 65%)";
      context.fillRect(cursor.x, cursor.y, 1, 1);
    }
  };
  useEffect(draw, [levels, cursor]);
  const ink = [1, 3, 5].map((at) => parseInt(pen.colour.slice(at, at + 2), 16) / 255);
  const dab = (x, y, target) => {
    const spread = Math.max(0.42, (Math.min(layout.height, layout.width) / 28) * 0.85) * pen.size;
    const reach = Math.ceil(3 * spread);
    for (let row = Math.max(0, Math.floor(y) - reach); row <= Math.min(layout.height - 1, Math.floor(y) + reach); row += 1) {
      for (let column = Math.max(0, Math.floor(x) - reach); column <= Math.min(layout.width - 1, Math.floor(x) + reach); column += 1) {
        const strength = Math.min(1, 1.4 * Math.exp(-((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2) / (2 * spread ** 2)));
        for (let channel = 0; channel < layout.channels; channel += 1) {
          const at = (row * layout.width + column) * layout.channels + channel;
          const wanted = pen.erases ? 0 : channel === 3 ? 1 : ink[Math.min(channel, 2)];
          // A second stroke must not make the first one paler.
          target[at] = layout.channels === 1 && !pen.erases ? Math.max(target[at], strength * wanted) : target[at] + (wanted - target[at]) * strength;
        }
      }
    }
  };
  const placeOf = (event) => {
    const box = element.current.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * layout.width, y: ((event.clientY - box.top) / box.height) * layout.height };
  };
  const stroke = (event) => {
    const to = placeOf(event);
    const from = last.current ?? to;
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / 0.35));
    const target = work.current.slice();
    for (let step = 1; step <= steps; step += 1) dab(from.x + ((to.x - from.x) * step) / steps, from.y + ((to.y - from.y) * step) / steps, target);
    last.current = to;
    onLevels(target);
  };
  const press = (event) => { element.current.setPointerCapture(event.pointerId); last.current = null; setCursor(null); stroke(event); };
  const type = (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const at = cursor ?? { x: Math.floor(layout.width / 2), y: Math.floor(layout.height / 2) };
    if (step) setCursor({ x: Math.min(layout.width - 1, Math.max(0, at.x + step[0])), y: Math.min(layout.height - 1, Math.max(0, at.y + step[1])) });
    else if (event.key === " ") { const target = levels.slice(); dab(at.x + 0.5, at.y + 0.5, target); setCursor(at); onLevels(target); } else return;
    event.preventDefault();
  };
  return html`<div class="stack"><div class="drawing">
      <canvas class="pixels" ref=${element} width=${layout.width} height=${layout.height} tabindex="0" role="application" aria-label="Drawing area: draw with the pointer, or move with the arrow keys and draw with the space bar"
        style=${{ "--aspect": `${layout.width} / ${layout.height}` }} onPointerDown=${press} onPointerMove=${(event) => event.buttons && stroke(event)} onPointerUp=${() => { last.current = null; }} onKeyDown=${type} onBlur=${() => setCursor(null)}></canvas></div>
    <div class="row"><label for="pen-size">Pen</label><input id="pen-size" type="range" min="0.6" max="3" step="0.2" value=${pen.size} style=${{ width: "110px" }} onInput=${(event) => setPen({ ...pen, size: Number(event.target.value) })} />
      ${layout.channels >= 3 && html`<label class="row">Colour <input type="color" value=${pen.colour} onInput=${(event) => setPen({ ...pen, colour: event.target.value })} /></label>`}
      <label class="row"><input type="checkbox" checked=${pen.erases} onChange=${(event) => setPen({ ...pen, erases: event.target.checked })} /> Erase</label></div></div>`;
}

function FromFile({ layout, levels, onLevels }) {
  const [problem, setProblem] = useState(null);
  const [over, setOver] = useState(false);
  const shown = useRef();
  useEffect(() => { paint(shown.current.getContext("2d"), levels, layout); }, [levels]);
  const take = async (file) => {
    if (!file) return;
    try {
      onLevels(await levelsOfFile(file, layout));
      setProblem(null);
    } catch {
      setProblem(Object.assign(new Error("The browser cannot read it as an image."), { title: "Not an image" }));
    }
  };
  return html`<div class="stack"><div class=${`drop ${over ? "over" : ""}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${(event) => { event.preventDefault(); setOver(false); take(event.dataTransfer.files[0]); }}>
      <label>Drop an image here, or choose one: <input type="file" accept="image/*" aria-label="Image file" onChange=${(event) => take(event.target.files[0])} /></label>
      <p class="small">It is cut to shape and made as small as the model's images, in this browser.</p></div>
    <div class="drawing"><canvas class="pixels" ref=${shown} width=${layout.width} height=${layout.height} role="img" aria-label="The image as the model sees it" style=${{ "--aspect": `${layout.width} / ${layout.height}` }}></canvas></div>
    <${Failure} problem=${problem} /></div>`;
}

/** The middle of an image file, as large as the model's rows, in grey or colour. */
async function levelsOfFile(file, { height, width, channels }) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - bitmap.width * scale) / 2, (height - bitmap.height * scale) / 2, bitmap.width * scale, bitmap.height * scale);
  const { data: bytes } = context.getImageData(0, 0, width, height);
  const levels = new Float32Array(height * width * channels);
  for (let at = 0; at < height * width; at += 1) {
    const [red, green, blue, alpha] = bytes.subarray(at * 4, at * 4 + 4);
    const parts = channels >= 3 ? [red, green, blue, alpha] : [0.299 * red + 0.587 * green + 0.114 * blue];
    for (let channel = 0; channel < channels; channel += 1) levels[at * channels + channel] = (parts[channel] ?? 255) / 255;
  }
  return levels;
}
