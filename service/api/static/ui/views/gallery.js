// Many image files: each is scored, the strangest come first, and each can be opened.
import { Failure, html, useEffect, useMemo, useRef, useState } from "../parts/base.js";
import { call } from "../parts/api.js";
import { csvText, save } from "../parts/csv.js";
import { levelsOfFile } from "../parts/image-files.js";
import { paint, rowOf } from "../parts/pixels.js";
import { count, number, plural } from "../parts/words.js";

/** Values of the strangest images that are kept for the latent map. */
const VALUES_KEPT = 500_000;
const IMAGES_KEPT = 100;
/** Values sent with one request: about a megabyte of JSON. */
const VALUES_AT_ONCE = 100_000;
const SHOWN = 60;

export function Gallery({ files, layout, base, isScored, onOpen, onRows }) {
  const { done, scored, unread, problem, isOver, cancel } = useScores(files, layout, base, isScored);
  const [shown, setShown] = useState(SHOWN);
  const [opened, setOpened] = useState(null);
  const order = useMemo(() => scored.toSorted((one, two) => two.score - one.score), [scored]);
  const flagged = scored.filter((each) => each.isAnomaly).length;
  const open = (each) => { setOpened(each.file); onOpen(each.file); };
  useEffect(() => {
    if (!isOver || !order.length) return;
    if (opened === null) open(order[0]);
    const kept = order.slice(0, Math.min(IMAGES_KEPT, Math.ceil(VALUES_KEPT / valuesOf(layout))));
    Promise.all(kept.map(async ({ file, score }) => ({ name: nameOf(file), score, row: rowOf(await levelsOfFile(file, layout), layout) }))).then(onRows, () => {});
  }, [isOver]);
  const saveAll = () => save("scores.csv", csvText([["file", "score", "p_value", "is_anomaly"], ...order.map((each) => [nameOf(each.file), each.score, each.pValue, each.isAnomaly])]));
  return html`<div class="stack">
    ${isOver ? html`<p role="status">${isScored ? html`<b>${count(flagged)} of ${plural(scored.length, "image")} flagged</b>, the strangest first.` : `${plural(scored.length, "image")}.`}</p>`
      : html`<div class="row"><label class="small" for="images-done">${count(done)} of ${count(files.length)} files</label><progress id="images-done" value=${done} max=${files.length}></progress><button type="button" class="button small" onClick=${cancel}>Stop</button></div>`}
    <${Failure} problem=${problem} />
    ${unread.length > 0 && html`<p class="message warn small">${plural(unread.length, "file")} left out, which the browser cannot read as images: ${unread.slice(0, 3).join(", ")}${unread.length > 3 ? ", …" : ""}</p>`}
    <ul class="gallery" aria-label="Images, the strangest first">${order.slice(0, shown).map((each) => html`<li key=${each.file}><${Thumbnail} picture=${each} layout=${layout} isOpen=${each.file === opened} onOpen=${() => open(each)} /></li>`)}</ul>
    <div class="row">${order.length > shown && html`<button type="button" class="button small" onClick=${() => setShown(shown + SHOWN)}>Show ${count(Math.min(SHOWN, order.length - shown))} more</button>`}
      ${isOver && isScored && scored.length > 0 && html`<button type="button" class="button small" onClick=${saveAll}>Save all scores as CSV</button>`}</div></div>`;
}

function valuesOf({ height, width, channels }) {
  return height * width * channels;
}

function nameOf(file) {
  return file.webkitRelativePath || file.name;
}

/** Scores of files, piece by piece. Pixels are not kept, so that a folder of any size fits into memory. */
function useScores(files, layout, base, isScored) {
  const [state, setState] = useState({ done: 0, scored: [], unread: [], problem: null, isOver: false });
  const abort = useRef();
  useEffect(() => {
    abort.current = new AbortController();
    const { signal } = abort.current;
    const atOnce = Math.max(1, Math.floor(VALUES_AT_ONCE / valuesOf(layout)));
    const run = async () => {
      for (let at = 0; at < files.length; at += atOnce) {
        const piece = files.slice(at, at + atOnce);
        const rows = await Promise.all(piece.map((file) => levelsOfFile(file, layout).then((levels) => rowOf(levels, layout), () => null)));
        const read = piece.filter((_, place) => rows[place]);
        const answer = read.length && isScored ? await call(`${base}/anomaly-score`, { method: "POST", body: { instances: rows.filter(Boolean) }, signal }) : null;
        if (signal.aborted) return;
        const scored = read.map((file, place) => ({ file, score: answer?.scores[place], pValue: answer?.p_values[place], isAnomaly: answer?.is_anomaly[place] ?? false }));
        setState((before) => ({
          ...before, done: at + piece.length, scored: [...before.scored, ...scored], unread: [...before.unread, ...piece.filter((_, place) => !rows[place]).map(nameOf)],
        }));
      }
    };
    run().catch((problem) => problem.name !== "AbortError" && setState((before) => ({ ...before, problem }))).finally(() => setState((before) => ({ ...before, isOver: true })));
    return () => abort.current.abort();
  }, []);
  return { ...state, cancel: () => abort.current.abort() };
}

function Thumbnail({ picture: { file, score, isAnomaly }, layout, isOpen, onOpen }) {
  const element = useRef();
  useEffect(() => {
    levelsOfFile(file, layout).then((levels) => element.current && paint(element.current.getContext("2d"), levels, layout), () => {});
  }, [file]);
  const name = nameOf(file);
  const words = score === undefined ? "" : `score ${number(score, 3)}${isAnomaly ? ", flagged" : ""}`;
  return html`<button type="button" class=${isAnomaly ? "flagged" : ""} aria-pressed=${isOpen ? "true" : "false"} title=${name} onClick=${onOpen}>
    <canvas class="pixels" ref=${element} width=${layout.width} height=${layout.height} aria-hidden="true" style=${{ "--aspect": `${layout.width} / ${layout.height}` }}></canvas>
    <span class="name">${name.split("/").at(-1)}</span><span class="small">${words}</span></button>`;
}
