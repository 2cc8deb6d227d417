// Try it: a row in, and what the model makes of it, in words and pictures.
import { Card, Failure, Loaded, Loading, html, useEffect, useLoad, useMemo, useRef, useState } from "../parts/base.js";
import { call, versionPath } from "../parts/api.js";
import { WithVersion } from "../parts/pickers.js";
import { tried } from "../parts/tried.js";
import { number } from "../parts/words.js";
import { Outcome } from "./outcome.js";

const PAUSE_MS = 180;
const MOST_EXPLAINED = 500;

export default function Try({ path }) {
  return html`<${WithVersion} view="try" title="Try it" lead="Give the model a row, and see how strange it finds it, why, and what it would have expected." path=${path}>
    ${(chosen) => html`<${Bench} key=${path.join("/")} ...${chosen} alert=${path.slice(2)} />`}<//>`;
}

const INPUTS = {
  tabular: () => import("./input-table.js"),
  image: () => import("./input-image.js"),
  timeseries: () => import("./input-series.js"),
};

/** The row of an alert that the address names by its request and row. */
async function rowOf(model, version, [request, row], signal) {
  const { alerts } = await call("activity", { signal });
  const found = alerts.find((alert) => alert.model === model && alert.version === version && alert.request_id === request && String(alert.row) === row);
  if (found?.values) return found.values;
  throw Object.assign(new Error(found ? "The service keeps no values of this row: AUTOENCODER_ALERT_VALUES=true keeps those of rows of up to 1,024 values." : `Row ${row} of request ${request} is not among the last alerts of version ${version}; with several workers, not among those of the one that answered.`), { title: "The row cannot be shown" });
}

function Bench({ model, version, detail, alert }) {
  const base = versionPath(model, version);
  const schema = detail.input;
  const ground = useLoad(async (signal) => {
    const [calibration, sample, module, flagged] = await Promise.all([
      detail.calibration && call(`${base}/calibration`, { signal }), detail.exhibits.includes("sample-request") ? call(`${base}/sample-request`, { signal }) : null, INPUTS[schema.kind](),
      alert.length ? rowOf(model, version, alert, signal) : null,
    ]);
    return { calibration, samples: sample?.instances ?? [], Input: module.default, flagged };
  }, [base]);
  const before = useMemo(() => tried.of(model, version), [model, version]);
  const [row, setRow] = useState(alert.length ? null : before?.row ?? null);
  const [judged, setJudged] = useState(null);
  const answer = useStudy(base, detail, row, (study) => tried.keep({ model, version, row, ...study }));
  return html`<${Loaded} state=${ground} what="Loading">${({ calibration, samples, Input, flagged }) => html`<div class=${schema.kind === "timeseries" ? "stack" : "wide-left"}>
    <div class="stack"><${Glance} study=${answer.problem ? null : answer.value} judged=${judged} /><${Input} schema=${schema} samples=${samples} start=${row ?? flagged} base=${base} onRow=${setRow} onRows=${(rows) => tried.keepBatch(model, version, rows)} study=${answer.value} problem=${answer.problem} isScored=${Boolean(calibration)} calibration=${calibration} detail=${detail} onJudge=${setJudged} /></div>
    <div class="stack" id="outcome">
      ${answer.problem ? html`<${Failure} problem=${answer.problem} />` : answer.value ? html`<${Outcome} study=${answer.value} row=${answer.value.row} judged=${judged} detail=${detail} calibration=${calibration} model=${model} version=${version} />`
        : row ? html`<${Loading} what="Asking the model" />`
          : html`<${Card}><div class="empty"><h3>Nothing tried yet</h3><p>Fill in a row on this page, or take a sample from the model's own test rows.</p></div><//>`}
    </div></div>`}<//>`;
}

/** The verdict in short, where the form would push the whole out of sight. */
function Glance({ study, judged }) {
  if (!study || study.score === null) return null;
  const show = () => document.getElementById("outcome").scrollIntoView({ behavior: "smooth" });
  return html`<div class=${`glance ${(judged ?? study).flagged ? "flagged" : ""}`}><span>${judged ? judged.title : `${study.flagged ? "Flagged" : "Not flagged"}, score ${number(study.score)}`}</span><button type="button" class="button small" onClick=${show}>See why</button></div>`;
}

/** What the version says of a row: asked when the row has not changed for a moment. */
function useStudy(base, detail, row, onStudy) {
  const [state, setState] = useState({});
  const latest = useRef();
  latest.current = onStudy;
  useEffect(() => {
    if (!row) return undefined;
    const abort = new AbortController();
    const timer = setTimeout(() => {
      studyOf(base, detail, row, abort.signal).then(
        (value) => { setState({ value }); latest.current(value); },
        (problem) => problem.name !== "AbortError" && setState({ problem }),
      );
    }, PAUSE_MS);
    return () => { clearTimeout(timer); abort.abort(); };
  }, [base, row]);
  return state;
}

/** Score with its reasons, reconstruction, denoised row and latent of one row. */
export async function studyOf(base, detail, row, signal) {
  const body = { instances: [row] };
  const can = (name) => detail.signatures[name] !== undefined;
  const post = (operation, options = {}) => call(`${base}/${operation}`, { method: "POST", body: { ...body, ...options }, signal });
  const features = detail.input.columns.length || detail.input.row_shape.reduce((product, size) => product * size, 1);
  // Of an image the error of each pixel is seen from its reconstruction.
  const explain = !can("explain") || detail.input.kind === "image" ? {} : { explain: detail.input.kind === "timeseries" ? features : Math.min(features, MOST_EXPLAINED) };
  const times = new Set(detail.input.columns.filter(({ type }) => type === "timestamp").map(({ name }) => name));
  const [score, reconstructed, denoised, latent] = await Promise.all([
    can("anomaly_score") ? post("anomaly-score", explain) : null, post("reconstruct"), can("denoise") ? post("denoise") : null, can("encode") ? post("encode") : null,
  ]);
  return {
    row,
    score: score?.scores[0] ?? null,
    pValue: score?.p_values[0] ?? null,
    flagged: score?.is_anomaly[0] ?? false,
    threshold: score?.threshold ?? null,
    contributions: score?.contributions?.[0].map((each) => (times.has(each.feature) ? { ...each, isTime: true, usual: detail.metrics.usual_times?.[each.feature] } : each)) ?? null,
    reconstruction: reconstructed.reconstructions[0],
    denoised: denoised?.denoised[0] ?? null,
    latent: latent?.latents[0] ?? null,
  };
}
