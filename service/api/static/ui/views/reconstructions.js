// What the version makes of the rows that it publishes, drawn by the page, so that it follows the theme.
import { Card, Loaded, html, useLoad } from "../parts/base.js";
import { call } from "../parts/api.js";
import { LineChart } from "../parts/charts.js";
import { Picture, layoutOf, levelsOf } from "../parts/pixels.js";
import { featureName, number } from "../parts/words.js";

const SHOWN = { image: 8, timeseries: 2, tabular: 4 };

export function Reconstructions({ base, schema }) {
  const state = useLoad(async (signal) => {
    const { instances } = await call(`${base}/sample-request`, { signal });
    const rows = instances.slice(0, SHOWN[schema.kind]);
    const { reconstructions } = await call(`${base}/reconstruct`, { method: "POST", body: { instances: rows }, signal });
    return rows.map((row, at) => [row, reconstructions[at]]);
  }, [base]);
  const Drawn = { image: Images, timeseries: Series, tabular: Table }[schema.kind];
  return html`<${Card} title="Reconstructions of test rows"><${Loaded} state=${state}>${(pairs) => html`<${Drawn} pairs=${pairs} schema=${schema} />`}<//><//>`;
}

function Images({ pairs, schema }) {
  const layout = layoutOf(schema);
  return html`<div class="pairs">${pairs.map(([row, rebuilt], at) => html`<div>
    <${Picture} title=${`Row ${at + 1}`} levels=${levelsOf(row, layout)} layout=${layout} /><${Picture} title="Reconstruction" levels=${levelsOf(rebuilt, layout)} layout=${layout} /></div>`)}</div>`;
}

function Series({ pairs, schema }) {
  const names = schema.channels?.length ? schema.channels : Array.from({ length: schema.row_shape[1] ?? 1 }, (_, at) => `channel ${at + 1}`);
  const channel = (row, at) => row.map((step) => (Array.isArray(step) ? step[at] : step));
  const steps = Array.from({ length: schema.row_shape[0] }, (_, at) => at + 1);
  return html`<div class="grid">${pairs.flatMap(([row, rebuilt], window) => names.map((name, at) => html`<${LineChart} label=${`${name}, window ${window + 1}: what was sent, and its reconstruction`} x=${steps} xLabel="step" height=${170}
    series=${[{ label: name, values: channel(row, at), tone: "--chart-1" }, { label: "reconstruction", values: channel(rebuilt, at), tone: "--chart-2", dashed: true }]} />`))}</div>`;
}

function Table({ pairs, schema }) {
  const nameOf = featureName(schema);
  const features = schema.columns.length ? schema.columns.map(({ name }) => name) : pairs[0][0].map((_, at) => at);
  const written = (value) => (value === null || value === undefined ? "missing" : number(value));
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Reconstructions of test rows"><table>
    <thead><tr><th scope="col">${schema.columns.length ? "Column" : "Value"}</th>${pairs.map((_, at) => html`<th scope="col" class="right">Row ${at + 1}</th><th scope="col" class="right">Reconstruction</th>`)}</tr></thead>
    <tbody>${features.map((feature) => html`<tr><th scope="row">${nameOf(feature)}</th>${pairs.map(([row, rebuilt]) => html`<td class="right number">${written(row[feature])}</td><td class="right number">${written(rebuilt[feature])}</td>`)}</tr>`)}</tbody></table></div>`;
}
