// The threshold on the calibration, and what it costs, in words.
import { html, useState } from "./base.js";
import { Measured } from "./alarms.js";
import { ScoreHistogram } from "./charts.js";
import { count, number, outOf, percent } from "./words.js";

const ROWS_A_DAY = 10_000;

/** Position on the slider whose rate is nearest to a rate. */
function nearest(thresholds, rate) {
  let best = 0;
  thresholds.forEach((each, at) => {
    if (Math.abs(Math.log(each.false_alarm_rate / rate)) < Math.abs(Math.log(thresholds[best].false_alarm_rate / rate))) best = at;
  });
  return best;
}

/** calibration: as the service gives it. alarms: the false alarms that training measured, if it did. score: of one row, or undefined. */
export function ThresholdStudy({ calibration, alarms, score }) {
  const [position, setPosition] = useState(null);
  const [rowsADay, setRowsADay] = useState(ROWS_A_DAY);
  const { thresholds } = calibration;
  const chosen = position === null ? { false_alarm_rate: calibration.false_alarm_rate, threshold: calibration.threshold } : thresholds[position];
  const { false_alarm_rate: rate, threshold } = chosen;
  const at = position ?? nearest(thresholds, calibration.false_alarm_rate);
  const enough = rate * (calibration.rows + 1) >= 1;
  const spoken = `${outOf(rate)} ordinary rows would be flagged`;
  return html`<div class="stack">
    <${ScoreHistogram} histogram=${calibration.histogram} threshold=${threshold} score=${score} />
    <div class="field">
      <label for="threshold">Threshold: ${number(threshold)} <span class="muted">(false-alarm rate ${percent(rate)})</span></label>
      <input id="threshold" type="range" min="0" max=${thresholds.length - 1} value=${at} aria-valuetext=${`Threshold ${number(threshold)}: ${spoken}`} onInput=${(event) => setPosition(Number(event.target.value))} />
      <div class="row small muted"><span>fewer false alarms</span><span style=${{ marginLeft: "auto" }}>catches more</span></div>
    </div>
    <p class="slider-words" aria-live="polite">With this threshold <b>${spoken}</b> by mistake.
      ${score !== undefined && html` The row you tried <b>${score > threshold ? "would be flagged" : "would not be flagged"}</b>.`}</p>
    <${Measured} alarms=${alarms} rate=${rate} />
    ${!enough && html`<p class="message warn small">The model was calibrated on ${count(calibration.rows)} rows: too few to promise so rare false alarms.</p>`}
    <div class="row small"><label for="rows-a-day">Rows a day</label>
      <input id="rows-a-day" type="number" min="1" max="1000000000" value=${rowsADay} onInput=${(event) => setRowsADay(Math.max(0, Number(event.target.value) || 0))} style=${{ width: "9em" }} />
      <span>make <b>about ${number(rate * rowsADay, 3)} false alarms a day</b>, if all of them are ordinary.</span></div>
    ${position !== null && html`<div class="row small"><button type="button" class="button small" onClick=${() => setPosition(null)}>Back to the version's own threshold</button>
      <span class="muted">To use this one, send <code>"false_alarm_rate": ${number(rate, 3)}</code> with your rows.</span></div>`}
  </div>`;
}
