// What the model said of one row: the verdict, what is at fault, the row beside its reconstruction, and the threshold.
import { Card, Uncalibrated, html, useMemo } from "../parts/base.js";
import { LineChart } from "../parts/charts.js";
import { Picture, layoutOf, levelsOf, pixelErrors } from "../parts/pixels.js";
import { region } from "../parts/region.js";
import { ThresholdStudy } from "../parts/threshold.js";
import { chief, count, explanation, featureName, finding, list, number, percent, portion } from "../parts/words.js";

const UNUSUAL = 0.1;

/** judged: for a window of a series whose readings were scored, what their rule says of it; the window's own score then decides nothing. */
export function Outcome({ study, row, detail, calibration, judged, model, version }) {
  const schema = detail.input;
  const { flagged } = judged ?? study;
  const nameOf = featureName(schema, judged?.stepName);
  const title = judged?.title ?? (flagged ? "Flagged as an anomaly" : study.pValue < UNUSUAL ? "Unusual, but not flagged" : "Ordinary");
  const tone = flagged ? "flagged" : !judged && study.pValue < UNUSUAL ? "unusual" : "";
  const link = `${encodeURIComponent(model)}/${version}`;
  return html`<div class="stack" data-outcome=${flagged ? "flagged" : tone || "ordinary"}>
    ${calibration ? html`<div class=${`verdict ${tone}`} role="status">
      <h2>${title}</h2>
      <p>${judged ? `${judged.words}; ${chiefly(study, flagged, nameOf)}.` : sentence(study, detail, calibration)}</p>
      <p class="small muted">${judged ? judged.rule : `Score ${number(study.score)}, threshold ${number(study.threshold)}, p-value ${number(study.pValue, 3)}`}${study.latent ? html` · <a href=${`#/latent/${link}`}>see it in the latent space</a>` : ""}</p>
    </div>` : html`<${Uncalibrated} model=${model} version=${version} />`}
    ${schema.kind === "image" ? html`<${Images} study=${study} row=${row} detail=${detail} />` : schema.kind === "timeseries" ? html`<${Series} study=${study} row=${row} schema=${schema} />` : null}
    ${study.contributions && html`<${AtFault} contributions=${study.contributions} schema=${schema} flagged=${flagged} nameOf=${nameOf} />`}
    ${schema.kind === "tabular" && html`<${Beside} study=${study} row=${row} schema=${schema} latent=${detail.latent_dim} />`}
    ${calibration && !judged && html`<${Card} title="Among ordinary rows"><${ThresholdStudy} calibration=${calibration} alarms=${detail.metrics.false_alarms} score=${study.score} /><//>`}
  </div>`;
}

function chiefly({ contributions }, flagged, nameOf) {
  return `${flagged ? "mostly because" : "what stands out most is that"} ${list(chief(contributions ?? []).map((each) => finding(each, nameOf))) || "many readings together are unlike those of training"}`;
}

function sentence(study, { input: schema, metrics }, calibration) {
  const because = schema.kind === "image" ? whereWrong(study, schema, metrics.pixel_error_limit) : null;
  const what = { image: "image", timeseries: "window" }[schema.kind] ?? "row";
  return explanation({ ...study, what, calibrationRows: calibration.rows, nameOf: featureName(schema), because });
}

/** Where an image is not as expected: of the errors only what is more than in ordinary images, if anything is. */
function whereWrong(study, schema, limit = Infinity) {
  const layout = layoutOf(schema);
  const errors = pixelErrors(study.row, study.reconstruction, layout);
  const excess = errors.map((error) => Math.max(0, error - limit));
  const isBeyond = excess.some(Boolean);
  const where = region(isBeyond ? excess : errors, layout);
  if (isBeyond || !Number.isFinite(limit)) return `${where} ${/ and |parts/.test(where) ? "do" : "does"} not look as the model expects`;
  return `the image as a whole is unusual: no pixel is off by more than in ordinary images, and most of the error is in ${where}`;
}

/** The features with the largest shares, each with what was seen and what was expected. */
function AtFault({ contributions, schema, flagged, nameOf }) {
  const shown = contributions.filter(({ share }) => share > 0.005).slice(0, 8);
  if (!shown.length) return null;
  const parts = schema.kind === "tabular" ? "Columns" : "Places";
  return html`<${Card} title=${flagged ? `${parts} at fault` : `${parts} that add most to the score`}>
    <ol class="bars" style=${{ listStyle: "none", margin: 0, padding: 0 }}>${shown.map((each) => html`<li class="line"><span class="name">${nameOf(each.feature)}</span>
      <div class="track"><div class="fill" style=${{ width: `${100 * each.share}%` }}></div></div><span class="number small right">${portion(each.share)}</span>
      <span class="why">${finding(each, nameOf).replace(`${nameOf(each.feature)} is `, "")}</span></li>`)}</ol>
    <p class="small muted" style=${{ marginTop: "12px" }}>Shares of the score; all of them add up to 100 %.</p><//>`;
}

function Images({ study, row, detail }) {
  const layout = useMemo(() => layoutOf(detail.input), [detail]);
  const limit = detail.metrics.pixel_error_limit;
  const drawn = useMemo(() => {
    const errors = pixelErrors(row, study.reconstruction, layout);
    const brightest = limit ? 2 * limit : Math.max(...errors, 1e-12);
    return {
      input: levelsOf(row, layout), reconstruction: levelsOf(study.reconstruction, layout),
      denoised: study.denoised && levelsOf(study.denoised, layout), errors: errors.map((error) => Math.min(1, error / brightest)),
    };
  }, [study]);
  return html`<${Card} title="What went in, and what came out"><div class="pictures">
    <${Picture} title="Input" levels=${drawn.input} layout=${layout} />
    <${Picture} title="Reconstruction" note="what the model expects" levels=${drawn.reconstruction} layout=${layout} />
    ${drawn.denoised && html`<${Picture} title="Denoised" note="noise taken away" levels=${drawn.denoised} layout=${layout} />`}
    <${Picture} title="Error map" note="squared difference" errors=${drawn.errors} layout=${layout} />
    <${Picture} title="Error over the input" levels=${drawn.input} errors=${drawn.errors} layout=${layout} />
  </div>
  <p class="row small muted" style=${{ marginTop: "12px" }}><span class="ramp heat" role="img" aria-label="Colours from black, no error, over red to pale yellow"></span>
    ${limit ? `Up to red: errors that ordinary images have too; ${percent(1 - detail.calibration.false_alarm_rate)} of them have no pixel beyond it. Orange and yellow: more than that.`
      : "Relative to the largest error of this image: this version does not know how large the errors of ordinary images are. Recalibrate it, and it does."}</p><//>`;
}

/** A series by channel: [[…], …]. */
function channelsOf(row) {
  if (!Array.isArray(row[0])) return [row];
  return row[0].map((_, channel) => row.map((step) => step[channel]));
}

function Series({ study, row, schema }) {
  const drawn = useMemo(() => {
    const steps = channelsOf(row)[0].map((_, at) => at + 1);
    const fault = steps.map(() => 0);
    for (const { feature, share } of study.contributions ?? []) fault[Array.isArray(feature) ? feature[0] : Math.floor(feature / (schema.row_shape[1] ?? 1))] += share;
    return { steps, sent: channelsOf(row), rebuilt: channelsOf(study.reconstruction), clean: study.denoised && channelsOf(study.denoised), fault };
  }, [study]);
  return html`<${Card} title="What went in, and what came out"><div class="stack">
    ${drawn.sent.map((values, channel) => html`<${LineChart} label=${`${schema.channels?.[channel] ?? "The series"}: what was sent, and its reconstruction`} x=${drawn.steps} xLabel="step" height=${200}
      series=${[{ label: schema.channels?.[channel] ?? "input", values, tone: "--chart-1" }, { label: "reconstruction", values: drawn.rebuilt[channel], tone: "--chart-2", dashed: true }, ...(drawn.clean ? [{ label: "denoised", values: drawn.clean[channel], tone: "--chart-3" }] : [])]} />`)}
    ${study.contributions && html`<${LineChart} label="Share of the score by step" x=${drawn.steps} xLabel="step" height=${130} fromZero=${true} format=${portion} series=${[{ label: "share of the score", values: drawn.fault, tone: "--chart-4", fill: true }]} />`}
  </div><//>`;
}

const isNear = (one, other) => one === other || (typeof one === "number" && typeof other === "number" && Math.abs(one - other) <= 1e-4 * Math.max(Math.abs(one), Math.abs(other)));

/** Each value as it was sent, beside what was expected: by the network of the score, as under the columns at fault, and by the reconstruction where that is another. */
function Beside({ study, row, schema, latent }) {
  const names = schema.columns.length ? schema.columns.map(({ name }) => name) : study.reconstruction.map((_, at) => at);
  const nameOf = featureName(schema);
  const explained = new Map((study.contributions ?? []).map((each) => [Array.isArray(each.feature) ? each.feature[0] : each.feature, each]));
  const isOne = names.every((name) => !explained.has(name) || isNear(explained.get(name).expected, study.reconstruction[name]));
  const head = (text) => html`<th scope="col" class="right">${text}</th>`;
  const cell = (value) => html`<td class="right number">${value}</td>`;
  const missing = (value) => (value === null || value === undefined ? "missing" : number(value));
  return html`<${Card} title="The row beside its reconstruction"><div class="scroll" tabindex="0" role="region" aria-label="The row beside its reconstruction"><table>
    <thead><tr><th scope="col">${schema.columns.length ? "Column" : "Value"}</th>${head("Sent")}${!isOne && head("Expected")}${head(isOne ? "Expected: reconstruction" : "Through the latent")}${study.denoised && head("Denoised")}${head("Share of the score")}</tr></thead>
    <tbody>${names.map((name) => html`<tr><th scope="row">${nameOf(name)}</th>${cell(missing(row[name]))}${!isOne && cell(explained.has(name) ? missing(explained.get(name).expected) : "–")}${cell(number(study.reconstruction[name]))}
      ${study.denoised && cell(number(study.denoised[name]))}${cell(explained.has(name) ? portion(explained.get(name).share) : "–")}</tr>`)}</tbody></table></div>
    <p class="small muted" style=${{ marginTop: "12px" }}>${isOne ? "" : "Expected: by the network of the score, from the other columns; the same as with the columns that add to the score. "}${isOne ? "Reconstruction" : "Through the latent"}: what is left of the row when it is squeezed into ${count(latent)} ${latent === 1 ? "number" : "numbers"} and built up again${isOne ? "" : "; this score does not look at it"}.</p><//>`;
}
