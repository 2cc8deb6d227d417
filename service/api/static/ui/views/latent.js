// The latent space: where ordinary rows lie, where the tried row lies among them, and what changes along its directions.
import { Card, Loaded, Tabs, Uncalibrated, html, useEffect, useLoad, useMemo, useRef, useState } from "../parts/base.js";
import { call, objectUrl, versionPath } from "../parts/api.js";
import { WithVersion } from "../parts/pickers.js";
import { Picture, layoutOf, levelsOf } from "../parts/pixels.js";
import { Scatter } from "../parts/scatter.js";
import { tried } from "../parts/tried.js";
import { count, featureName, number, percent, plural } from "../parts/words.js";

const NEIGHBOURS = 5;

export default function Latent({ path }) {
  return html`<${WithVersion} view="latent" title="Latent space" lead="A row becomes a few numbers, its latent. Rows that the model finds alike lie close together; this is the latent space seen from its two widest sides." path=${path}>
    ${(chosen) => html`<${Space} ...${chosen} />`}<//>`;
}

function Space({ model, version, detail }) {
  const base = versionPath(model, version);
  const hasMap = detail.exhibits.includes("latent-map");
  const state = useLoad(async (signal) => {
    if (!hasMap || !detail.calibration) return null;
    const [map, calibration, own] = await Promise.all([call(`${base}/latent-map`, { signal }), call(`${base}/calibration`, { signal }), ownRows(base, model, version, detail, signal)]);
    return { map, calibration, own };
  }, [base]);
  const sheet = useSheet(base, detail.exhibits.includes("traversals"));
  return html`<${Loaded} state=${state} what="Loading the map">${(loaded) => (loaded === null
    ? !detail.calibration ? html`<${Uncalibrated} model=${model} version=${version} />` : html`<${Card}><div class="empty"><h3>This version has no latent map</h3><p>It was trained before there were any. Train the model again, and the map is drawn with it.</p></div><//>`
    : html`<div class="stack"><${LatentMap} ...${loaded} sheet=${sheet} study=${tried.of(model, version)} detail=${detail} model=${model} version=${version} />
        ${loaded.map.traversals && html`<${Walks} map=${loaded.map} sheet=${sheet} />`}</div>`)}<//>`;
}

/** Rows whose values the page has, with their latents: samples that the version publishes, images that were scored together. */
async function ownRows(base, model, version, detail, signal) {
  const sample = detail.exhibits.includes("sample-request") ? await call(`${base}/sample-request`, { signal }) : { instances: [] };
  const rows = [...sample.instances.map((row, at) => ({ name: `Sample row ${at + 1}`, row })), ...tried.batchOf(model, version)];
  if (!rows.length || !detail.signatures.encode) return [];
  const { latents } = await call(`${base}/encode`, { method: "POST", body: { instances: rows.map(({ row }) => row) }, signal });
  return rows.map((each, at) => ({ ...each, latent: latents[at] }));
}

/** Place of a latent along the principal directions: PCA is linear, so it is exact. */
export function project(map, latent) {
  return map.components.map((component) => component.reduce((sum, part, at) => sum + part * (latent[at] - map.mean[at]), 0));
}

/** Place among the points of t-SNE: between those that lie nearest, the nearer the more. */
export function among(tsne, projected) {
  const near = tsne.projected.map((place, at) => [Math.hypot(...place.map((value, axis) => value - projected[axis])), at]).sort((a, b) => a[0] - b[0]).slice(0, NEIGHBOURS);
  const weights = near.map(([far]) => 1 / (far + 1e-9));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const mean = (values) => near.reduce((sum, [, at], place) => sum + values[at] * weights[place], 0) / total;
  return { x: mean(tsne.x), y: mean(tsne.y) };
}

const COLOURED = { least: 0.5, most: 0.001 };

/** The p-value of a score, as far as the calibration's table of thresholds tells: it is at most this; 1 if it is over 0.5. */
export function pValueOf(score, { rows, thresholds }) {
  const found = thresholds.find(({ threshold }) => score > threshold);
  return found ? Math.max(found.false_alarm_rate, 1 / (rows + 1)) : 1;
}

function rankOf(pValue) {
  const { least, most } = COLOURED;
  return Math.min(1, Math.max(0, Math.log(pValue / least) / Math.log(most / least)));
}

function LatentMap({ map, calibration, own, sheet, study, detail, model, version }) {
  const [kind, setKind] = useState("pca");
  const [picked, setPicked] = useState(null);
  const { threshold } = detail.calibration;
  const isTsne = kind === "tsne";
  const shown = useMemo(() => {
    const scores = isTsne ? map.tsne.point.map((at) => map.score[at]) : map.score;
    const { x, y } = isTsne ? map.tsne : map;
    const pValues = scores.map((score) => pValueOf(score, calibration));
    return { x, y, scores, pValues, rank: pValues.map(rankOf), isRinged: scores.map((score) => score > threshold) };
  }, [map, kind]);
  const placeOf = (latent) => {
    const projected = project(map, latent);
    return isTsne ? among(map.tsne, projected) : { x: projected[0], y: projected[1] ?? 0 };
  };
  const star = useMemo(() => (study?.latent ? placeOf(study.latent) : null), [map, kind, study]);
  const marks = useMemo(() => own.map(({ latent }) => placeOf(latent)), [map, kind, own]);
  const flagged = useMemo(() => shown.scores.map((_, at) => at).filter((at) => shown.isRinged[at]).sort((one, two) => shown.scores[two] - shown.scores[one]), [shown]);
  useEffect(() => setPicked(null), [kind]);
  const next = () => setPicked({ at: flagged[(flagged.indexOf(picked?.at) + 1) % flagged.length] });
  const seen = map.explained.slice(0, 2).reduce((sum, share) => sum + share, 0);
  const label = `Map of ${count(shown.scores.length)} rows in the latent space, ${count(flagged.length)} of them over the threshold, ringed.${star ? " A star marks the row you tried." : ""}`;
  const pinned = picked && (picked.mark === undefined ? { x: shown.x[picked.at], y: shown.y[picked.at] } : marks[picked.mark]);
  const link = `${encodeURIComponent(model)}/${version}`;
  const tryRow = (row) => { tried.keep({ model, version, row }); location.hash = `#/try/${link}`; };
  return html`<${Card} title="Map" aside=${html`<span class="row small muted">p-value ${COLOURED.least} <span class="ramp" role="img" aria-label=${`Colours from blue, p-value ${COLOURED.least} and more, to red, ${COLOURED.most} and less`}></span> ${COLOURED.most}</span>`}>
    ${map.tsne && html`<${Tabs} label="Kind of map" tabs=${[["pca", "PCA"], ["tsne", "t-SNE"]]} chosen=${kind} onChoose=${setKind} />`}
    <${Scatter} points=${shown} star=${star} marks=${marks} pinned=${pinned} onPick=${setPicked} label=${label}
      describe=${({ at, mark }) => (mark === undefined ? `score ${number(shown.scores[at])}${shown.isRinged[at] ? ", flagged" : ""}` : own[mark].name)} />
    ${picked && (picked.mark === undefined
      ? html`<${Point} score=${shown.scores[picked.at]} pValue=${shown.pValues[picked.at]} threshold=${threshold} place=${isTsne ? map.tsne.projected[picked.at] : [map.x[picked.at], map.y[picked.at]]} layout=${map.traversals} isImage=${detail.input.kind === "image"} sheet=${sheet} />`
      : html`<${OwnRow} own=${own[picked.mark]} schema=${detail.input} onTry=${() => tryRow(own[picked.mark].row)} />`)}
    <div class="stack small" style=${{ marginTop: "12px" }}>
      ${flagged.length > 0 && html`<div class="row"><button type="button" class="button small" onClick=${next}>Next flagged row</button><span class="muted">or click a point.</span></div>`}
      <p>${kind === "pca" ? `The two widest directions of ${plural(map.latent_dim, "latent number")}; they hold ${percent(seen)} of how rows differ.` : "t-SNE keeps neighbours together; distances between groups mean little."}
        ${" "}${count(shown.scores.length)} rows that were not fitted, coloured by p-value; the ${count(flagged.length)} over the threshold are ringed.${own.length > 0 && " Diamonds are rows whose values are at hand: click one to see it."}</p>
      <p>${star ? html`<b>★ The row you tried</b>, with a score of ${number(study.score)}, ${kind === "pca" ? "stands exactly where PCA puts it." : "stands between the rows that are nearest to it, which is only about right."} A strange row may lie among ordinary ones here: what makes it strange can be what the latent leaves out.`
        : html`<a href=${`#/try/${link}`}>Try a row</a>, and it is marked here.`}</p></div><//>`;
}

/** A row of the map: the version keeps its place and its score, and no value of it. */
function Point({ score, pValue, threshold, place: [x, y = 0], layout, isImage, sheet }) {
  const isFlagged = score > threshold;
  const tile = layout?.plane_sd && planeTile(layout, x, y);
  return html`<div class=${`picked ${isFlagged ? "flagged" : ""}`} role="status">
    ${tile && html`<${Tile} sheet=${sheet} layout=${layout} direction=${tile.line} step=${tile.step} words="What the decoder draws at this place" />`}
    <div><h3>${isFlagged ? "A row over the threshold" : "A row under the threshold"}</h3>
      <p>Score ${number(score)}, threshold ${number(threshold)}, p-value ${pValue > COLOURED.least ? `over ${COLOURED.least}` : `at most ${number(pValue, 2)}`}; at ${number(x, 3)} and ${number(y, 3)} along the two widest directions.</p>
      <p class="small muted">${tile ? "The picture is what the decoder draws at this place, not the row itself. " : isImage ? "Train again, and the map shows what the decoder draws here. " : ""}The values of rows are not kept with a version.</p></div></div>`;
}

/** Line and step in the picture of the traversals where the plane of the map is nearest to a place. */
function planeTile({ plane_sd: deviations, steps, limit_sd: limit, directions }, ...place) {
  const [across, up] = place.map((value, axis) => Math.min(steps - 1, Math.max(0, Math.round((value / (deviations[axis] || 1) / limit + 1) / 2 * (steps - 1)))));
  return { line: directions + steps - 1 - up, step: across };
}

/** A row whose values are at hand, to be looked at and tried. */
function OwnRow({ own: { name, row, score }, schema, onTry }) {
  const layout = useMemo(() => layoutOf(schema), [schema]);
  const levels = useMemo(() => (schema.kind === "image" ? levelsOf(row, layout) : null), [row]);
  const nameOf = featureName(schema);
  return html`<div class="picked" role="status">
    ${levels && html`<${Picture} title="Image" levels=${levels} layout=${layout} />`}
    <div><h3>${name}</h3>${score !== undefined && html`<p>Score ${number(score)}.</p>`}
      ${schema.kind === "tabular" && html`<dl class="facts">${(Array.isArray(row) ? row.map((value, at) => [at, value]) : Object.entries(row)).slice(0, 40).map(([feature, value]) => html`<dt>${nameOf(feature)}</dt><dd>${value === null ? "missing" : number(value)}</dd>`)}</dl>`}
      <p style=${{ marginTop: "8px" }}><button type="button" class="button small" onClick=${onTry}>Open in Try it</button></p></div></div>`;
}

/** The picture of the traversals, as it was drawn at training; null until it is there. */
function useSheet(base, isThere) {
  const [sheet, setSheet] = useState(null);
  useEffect(() => {
    if (!isThere) return undefined;
    const abort = new AbortController();
    let made;
    objectUrl(`${base}/traversals`, { signal: abort.signal }).then((url) => {
      made = url;
      const image = new Image();
      image.onload = () => setSheet(image);
      image.src = url;
    }, () => {});
    return () => { abort.abort(); if (made) URL.revokeObjectURL(made); };
  }, [base]);
  return sheet;
}

/** Images along the principal directions. */
function Walks({ map, sheet }) {
  const { directions, steps, limit_sd: limit } = map.traversals;
  const [places, setPlaces] = useState(() => Array(directions).fill((steps - 1) / 2));
  const swing = () => setPlaces(places.map(() => Math.floor(Math.random() * steps)));
  return html`<${Card} title="Along the latent directions" aside=${html`<span class="row"><button type="button" class="button small" onClick=${swing}>Shuffle</button><button type="button" class="button small" onClick=${() => setPlaces(places.map(() => (steps - 1) / 2))}>Middle</button></span>`}>
    <p class="muted small" style=${{ marginBottom: "14px" }}>Each slider moves the average latent along one direction, and the decoder draws what lies there: what the model has learned to vary.</p>
    <div class="walks">${places.map((place, direction) => {
      const deviations = (place / (steps - 1)) * 2 * limit - limit;
      return html`<div class="field"><${Tile} sheet=${sheet} layout=${map.traversals} direction=${direction} step=${place} words=${`What the decoder draws along direction ${direction + 1}`} />
        <label for=${`walk-${direction}`}>Direction ${direction + 1} <span class="muted small">${percent(map.explained[direction])}</span></label>
        <input id=${`walk-${direction}`} type="range" min="0" max=${steps - 1} value=${place} aria-valuetext=${`${number(deviations, 2)} standard deviations`} onInput=${(event) => setPlaces(places.map((each, at) => (at === direction ? Number(event.target.value) : each)))} /></div>`;
    })}</div><//>`;
}

function Tile({ sheet, layout: { width, height }, direction, step, words }) {
  const element = useRef();
  useEffect(() => {
    if (sheet) element.current.getContext("2d").drawImage(sheet, step * width, direction * height, width, height, 0, 0, width, height);
  }, [sheet, direction, step]);
  return html`<canvas class="pixels" ref=${element} width=${width} height=${height} role="img" aria-label=${words} style=${{ "--aspect": `${width} / ${height}` }}></canvas>`;
}
