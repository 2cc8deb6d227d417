// An image: drawn by hand, from files, or a sample.
import { Card, Failure, Tabs, html, useEffect, useMemo, useRef, useState } from "../parts/base.js";
import { droppedFiles, levelsOfFile } from "../parts/image-files.js";
import { layoutOf, levelsOf, paint, rowOf } from "../parts/pixels.js";
import { Gallery } from "./gallery.js";

export default function ImageInput({ schema, samples, start, base, onRow, onRows, isScored }) {
  const layout = useMemo(() => layoutOf(schema), [schema]);
  const blank = () => new Float32Array(layout.height * layout.width * layout.channels);
  const [levels, setLevels] = useState(() => (start ? levelsOf(start, layout) : samples[0] ? levelsOf(samples[0], layout) : blank()));
  const [tab, setTab] = useState("draw");
  const [sample, setSample] = useState(0);
  useEffect(() => { onRow(rowOf(levels, layout)); }, [levels]);
  const takeSample = () => { const next = (sample + 1) % samples.length; setSample(next); setLevels(levelsOf(samples[next], layout)); };
  const noisy = () => setLevels(levels.map((level) => Math.min(1, Math.max(0, level + 0.22 * normal()))));
  return html`<${Card} title="The image" aside=${html`<span class="small muted">${layout.width} × ${layout.height}${layout.channels > 1 ? ` × ${layout.channels}` : ""}</span>`}>
    <${Tabs} label="How to give the image" tabs=${[["draw", "Draw"], ["files", "Files"]]} chosen=${tab} onChoose=${setTab} />
    ${tab === "draw" ? html`<${Drawing} layout=${layout} levels=${levels} onLevels=${setLevels} />` : html`<${FromFiles} layout=${layout} levels=${levels} onLevels=${setLevels} base=${base} isScored=${isScored} onRows=${onRows} />`}
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

/** One file becomes the row; of several each is scored, and the one that is opened becomes the row. */
function FromFiles({ layout, levels, onLevels, base, isScored, onRows }) {
  const [problem, setProblem] = useState(null);
  const [over, setOver] = useState(false);
  const [files, setFiles] = useState(null);
  const shown = useRef();
  useEffect(() => { paint(shown.current.getContext("2d"), levels, layout); }, [levels]);
  const open = (file) => levelsOfFile(file, layout).then(
    (read) => { onLevels(read); setProblem(null); },
    () => setProblem(Object.assign(new Error("The browser cannot read it as an image."), { title: "Not an image" })),
  );
  const take = (chosen) => {
    setFiles(chosen.length > 1 ? chosen : null);
    if (chosen.length === 1) open(chosen[0]);
  };
  const drop = async (event) => { event.preventDefault(); setOver(false); take(await droppedFiles(event.dataTransfer)); };
  const choose = (event) => take([...event.target.files]);
  return html`<div class="stack"><div class=${`drop stack ${over ? "over" : ""}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <label>Drop images or a folder here, or choose images: <input type="file" accept="image/*" multiple aria-label="Image file" onChange=${choose} /></label>
      <label>or a folder: <input type="file" webkitdirectory aria-label="Image folder" onChange=${choose} /></label>
      <p class="small">Each is turned upright and brought to the size of the model's images, in this browser.</p></div>
    <${Failure} problem=${problem} />
    ${files && html`<${Gallery} key=${files} files=${files} layout=${layout} base=${base} isScored=${isScored} onOpen=${open} onRows=${onRows} />`}
    <div class="drawing"><canvas class="pixels" ref=${shown} width=${layout.width} height=${layout.height} role="img" aria-label="The image as the model sees it" style=${{ "--aspect": `${layout.width} / ${layout.height}` }}></canvas></div></div>`;
}
