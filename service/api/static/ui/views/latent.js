// The latent space: where ordinary rows lie, where the tried row lies among them, and what changes along its directions.
import { Card, Loaded, Tabs, Uncalibrated, html, useEffect, useLoad, useMemo, useRef, useState } from "../parts/base.js";
import { call, objectUrl, versionPath } from "../parts/api.js";
import { WithVersion } from "../parts/pickers.js";
import { Scatter } from "../parts/scatter.js";
import { tried } from "../parts/tried.js";
import { count, number, percent, plural } from "../parts/words.js";

const NEIGHBOURS = 5;

export default function Latent({ path }) {
  return html`<${WithVersion} view="latent" title="Latent space" lead="A row becomes a few numbers, its latent. Rows that the model finds alike lie close together; this is the latent space seen from its two widest sides." path=${path}>
    ${(chosen) => html`<${Space} ...${chosen} />`}<//>`;
}

function Space({ model, version, detail }) {
  const base = versionPath(model, version);
  const state = useLoad((signal) => (detail.exhibits.includes("latent-map") ? call(`${base}/latent-map`, { signal }) : Promise.resolve(null)), [base]);
  return html`<${Loaded} state=${state} what="Loading the map">${(map) => (map === null
    ? !detail.calibration ? html`<${Uncalibrated} model=${model} version=${version} />` : html`<${Card}><div class="empty"><h3>This version has no latent map</h3><p>It was trained before there were any. Train the model again, and the map is drawn with it.</p></div><//>`
    : html`<div class="stack"><${LatentMap} map=${map} study=${tried.of(model, version)} detail=${detail} link=${`${encodeURIComponent(model)}/${version}`} />
        ${map.traversals && html`<${Walks} map=${map} base=${base} />`}</div>`)}<//>`;
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

function ranksOf(scores) {
  const order = scores.map((_, at) => at).sort((a, b) => scores[a] - scores[b]);
  const ranks = new Float32Array(scores.length);
  order.forEach((at, place) => { ranks[at] = place / Math.max(1, scores.length - 1); });
  return ranks;
}

function LatentMap({ map, study, detail, link }) {
  const [kind, setKind] = useState("pca");
  const projected = useMemo(() => (study?.latent ? project(map, study.latent) : null), [map, study]);
  const shown = useMemo(() => {
    const scores = kind === "tsne" ? map.tsne.point.map((at) => map.score[at]) : map.score;
    const source = kind === "tsne" ? map.tsne : map;
    return { x: source.x, y: source.y, scores, rank: ranksOf(scores) };
  }, [map, kind]);
  const star = useMemo(() => {
    if (!projected) return null;
    return kind === "tsne" ? among(map.tsne, projected) : { x: projected[0], y: projected[1] ?? 0 };
  }, [map, kind, projected]);
  const over = shown.scores.filter((score) => score > detail.calibration.threshold).length;
  const seen = map.explained.slice(0, 2).reduce((sum, share) => sum + share, 0);
  const label = `Map of ${count(shown.scores.length)} rows in the latent space, ${count(over)} of them over the threshold.${star ? " A star marks the row you tried." : ""}`;
  return html`<${Card} title="Map" aside=${html`<span class="row small muted">ordinary <span class="ramp" role="img" aria-label="Colours from blue, low score, to red, high score"></span> strange</span>`}>
    ${map.tsne && html`<${Tabs} label="Kind of map" tabs=${[["pca", "PCA"], ["tsne", "t-SNE"]]} chosen=${kind} onChoose=${setKind} />`}
    <${Scatter} points=${shown} star=${star} label=${label} describe=${(at) => `score ${number(shown.scores[at])}${shown.scores[at] > detail.calibration.threshold ? ", flagged" : ""}`} />
    <div class="stack small" style=${{ marginTop: "12px" }}>
      <p>${kind === "pca" ? `The two widest directions of ${plural(map.latent_dim, "latent number")}; they hold ${percent(seen)} of how rows differ.` : "t-SNE keeps neighbours together; distances between groups mean little."}
        ${" "}${count(shown.scores.length)} rows that were not fitted, ${count(over)} of them over the threshold.</p>
      <p>${star ? html`<b>★ The row you tried</b>, with a score of ${number(study.score)}, ${kind === "pca" ? "stands exactly where PCA puts it." : "stands between the rows that are nearest to it, which is only about right."} A strange row may lie among ordinary ones here: what makes it strange can be what the latent leaves out.`
        : html`<a href=${`#/try/${link}`}>Try a row</a>, and it is marked here.`}</p></div><//>`;
}

/** Images along the principal directions, from a picture that was drawn at training. */
function Walks({ map, base }) {
  const [sheet, setSheet] = useState(null);
  const { directions, steps, limit_sd: limit } = map.traversals;
  const [places, setPlaces] = useState(() => Array(directions).fill((steps - 1) / 2));
  useEffect(() => {
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
  const swing = () => setPlaces(places.map(() => Math.floor(Math.random() * steps)));
  return html`<${Card} title="Along the latent directions" aside=${html`<span class="row"><button type="button" class="button small" onClick=${swing}>Shuffle</button><button type="button" class="button small" onClick=${() => setPlaces(places.map(() => (steps - 1) / 2))}>Middle</button></span>`}>
    <p class="muted small" style=${{ marginBottom: "14px" }}>Each slider moves the average latent along one direction, and the decoder draws what lies there: what the model has learned to vary.</p>
    <div class="walks">${places.map((place, direction) => {
      const deviations = (place / (steps - 1)) * 2 * limit - limit;
      return html`<div class="field"><${Tile} sheet=${sheet} layout=${map.traversals} direction=${direction} step=${place} />
        <label for=${`walk-${direction}`}>Direction ${direction + 1} <span class="muted small">${percent(map.explained[direction])}</span></label>
        <input id=${`walk-${direction}`} type="range" min="0" max=${steps - 1} value=${place} aria-valuetext=${`${number(deviations, 2)} standard deviations`} onInput=${(event) => setPlaces(places.map((each, at) => (at === direction ? Number(event.target.value) : each)))} /></div>`;
    })}</div><//>`;
}

function Tile({ sheet, layout: { width, height }, direction, step }) {
  const element = useRef();
  useEffect(() => {
    if (sheet) element.current.getContext("2d").drawImage(sheet, step * width, direction * height, width, height, 0, 0, width, height);
  }, [sheet, direction, step]);
  return html`<canvas class="pixels" ref=${element} width=${width} height=${height} role="img" aria-label=${`What the decoder draws along direction ${direction + 1}`} style=${{ "--aspect": `${width} / ${height}` }}></canvas>`;
}
