// False-alarm rates that were asked for, beside those that training saw on test rows.
import { html } from "./base.js";
import { useWidth } from "./charts.js";
import { count, percent, plural } from "./words.js";

const HEIGHT = 250, LEFT = 58, FLOOR = 206, TOP = 10;
const RIGHT = 12;

/** What training measured at a rate, from the nearest rate that it was measured at: {empirical, low, high}; null where none is near. */
export function measuredAt(alarms, rate) {
  if (!alarms || rate < alarms.nominal[0] * 0.999) return null;
  const distance = (at) => Math.abs(Math.log(alarms.nominal[at] / rate));
  const at = alarms.nominal.reduce((best, _, each) => (distance(each) < distance(best) ? each : best), 0);
  return { empirical: alarms.empirical[at], low: alarms.low[at], high: alarms.high[at] };
}

/** How often test rows were flagged at this rate, with a warning where that is more than chance. */
export function Measured({ alarms, rate, what = "row", isDependent = false }) {
  const found = measuredAt(alarms, rate);
  if (!found) return null;
  const { empirical, low, high } = found;
  const sentence = `Of ${plural(alarms.rows, `test ${what}`)} ${percent(empirical)} ${empirical * alarms.rows === 1 ? "was" : "were"} over it.`;
  // Neighbouring readings resemble each other, so that chance explains more than the band says.
  if (isDependent && empirical > Math.max(high, 2 * rate)) return html`<p class="message warn small measured">${sentence} That is far more than was asked for: expect more false alarms.</p>`;
  if (isDependent) return html`<p class="small muted measured">${sentence}</p>`;
  if (empirical > high) return html`<p class="message warn small measured">${sentence} That is more than chance explains (up to ${percent(high)}): expect more false alarms than asked for.</p>`;
  return html`<p class="small muted measured">${sentence}${empirical < low ? ` That is less than chance explains (from ${percent(low)}): fewer odd rows may be caught than could be.` : ""}</p>`;
}

/** Nominal against empirical false-alarm rate, both logarithmic, with the band that holds 95 % of such curves at each rate. */
export function AlarmCurve({ alarms, what = "row", isDependent = false }) {
  const [element, width] = useWidth();
  if (!alarms) return html`<p class="muted" ref=${element}>This version was trained before it was measured; recalibrating it measures it.</p>`;
  const { nominal, empirical, low, high } = alarms;
  const least = Math.max(nominal[0] / 3, 0.5 / alarms.rows);
  const x = (rate) => LEFT + (width - LEFT - RIGHT) * (Math.log(rate / nominal[0]) / Math.log(nominal.at(-1) / nominal[0] || 2));
  const y = (rate) => FLOOR - (FLOOR - TOP) * (Math.log(Math.max(rate, least) / least) / Math.log(1 / least));
  const line = (rates) => rates.map((rate, at) => `${x(nominal[at]).toFixed(1)},${y(rate).toFixed(1)}`);
  const ticks = [0.0001, 0.001, 0.01, 0.1, 1];
  const over = nominal.filter((_, at) => empirical[at] > high[at]);
  const under = nominal.filter((_, at) => empirical[at] < low[at]);
  const share = (part) => percent(part.length / nominal.length);
  const outside = over.length
    ? `More test ${what}s are flagged than chance explains at rates from ${percent(over[0])} to ${percent(over.at(-1))}, ${share(over)} of the curve.`
    : under.length ? `Fewer test ${what}s are flagged than chance explains at rates from ${percent(under[0])} to ${percent(under.at(-1))}, ${share(under)} of the curve.` : "";
  const words = outside || "The curve stays in the band: the rate holds.";
  return html`<div class="stack"><div ref=${element}><svg class="alarm-curve" width=${width} height=${HEIGHT} role="img" aria-label=${`False-alarm rate asked for, against the share of ${count(alarms.rows)} test ${what}s that were flagged. ${words}`}>
      ${ticks.filter((tick) => tick >= nominal[0] && tick <= nominal.at(-1)).map((tick) => html`<line class="axis" x1=${x(tick)} x2=${x(tick)} y1=${TOP} y2=${FLOOR} /><text x=${x(tick)} y=${FLOOR + 16} text-anchor="middle">${percent(tick)}</text>`)}
      ${ticks.filter((tick) => tick >= least).map((tick) => html`<line class="axis" x1=${LEFT} x2=${width - RIGHT} y1=${y(tick)} y2=${y(tick)} /><text x=${LEFT - 8} y=${y(tick) + 4} text-anchor="end">${percent(tick)}</text>`)}
      <polygon class="band" points=${[...line(low), ...line(high).reverse()].join(" ")} />
      <polyline class="promised" points=${line(nominal).join(" ")} />
      <polyline class="seen" points=${line(empirical).join(" ")} />
      <text x=${(LEFT + width - RIGHT) / 2} y=${HEIGHT - 6} text-anchor="middle">false-alarm rate asked for</text>
    </svg></div>
    <p class="small muted">Line: the share of ${plural(alarms.rows, `test ${what}`)} that was flagged, ordinary ones that training never saw. Dotted: as asked for. Band: where 19 of 20 such curves lie at each rate by chance${isDependent ? ", if readings were independent; neighbours resemble each other, so that it is too narrow" : ""}.</p>
    ${outside ? html`<p class="message warn small">${outside} The p-values may not hold${over.length ? `: count on the measured rate` : ""}.</p>` : html`<p class="small">${words}</p>`}</div>`;
}
