// Numbers and findings as people say them.

const LOCALE = "en";
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });

/** A number with about four significant digits, as a person would write it. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "true" : "false";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(2).replace("e+", "e");
  if (size >= 10 ** digits) return whole.format(value);
  return new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: digits }).format(value);
}

export const count = (value) => whole.format(value);

export function percent(share, digits = 2) {
  return `${number(100 * share, digits)} %`;
}

/** What one of many parts adds to a whole; one that adds next to nothing is not counted out. */
export function portion(share) {
  return share > 0 && share < 0.001 ? "under 0.1 %" : percent(share);
}

export function date(text) {
  return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function time(text) {
  return new Date(text).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** A time as people say it, in UTC as it was written: "Tue, 3 Feb 2026, 04:10". */
export function timeText(seconds, withSeconds = false) {
  return new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: withSeconds ? "2-digit" : undefined, timeZone: "UTC" }).format(seconds * 1000);
}

export function plural(amount, one, many = `${one}s`) {
  return `${count(amount)} ${amount === 1 ? one : many}`;
}

/** "about 10 of 1,000": of the smallest round number of rows in which it would happen at least once. */
export function outOf(share) {
  let rows = share < 0.1 ? 1000 : 100;
  while (share * rows < 1 && rows < 1e6) rows *= 10;
  const hit = share * rows;
  return `about ${number(hit < 10 ? Math.round(hit * 10) / 10 : Math.round(hit), 3)} of ${count(rows)}`;
}

/** How strange a p-value makes a row, against the rows of the calibration. */
export function strangeness(pValue, calibrationRows, what = "row") {
  const resolution = 1 / (calibrationRows + 1);
  if (pValue <= resolution * 1.0001) return `stranger than all ${count(calibrationRows)} ordinary ${what}s that it was compared with`;
  return `stranger than ${count(Math.min(999, Math.floor((1 - pValue) * 1000)))} of 1,000 ordinary ${what}s`;
}

const value = (given) => (typeof given === "string" ? `“${given}”` : number(given, 3));

const DAYS = ["Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays"];

/** "Saturday 14:27", of a time in UTC. */
function dayAndHour(text) {
  const part = (options) => new Intl.DateTimeFormat("en-GB", { ...options, timeZone: "UTC" }).format(new Date(text));
  return `${part({ weekday: "long" })} ${part({ hour: "2-digit", minute: "2-digit" })}`;
}

/** "weekdays 9 to 17", of {days, hours} as training found them. */
function usually({ days, hours }) {
  const named = { "0,1,2,3,4": "weekdays", "5,6": "weekends" }[days?.join()] ?? (days ? list(days.map((day) => DAYS[day])) : "");
  return [named, hours && `${hours[0]} to ${hours[1] || 24}`].filter(Boolean).join(" ");
}

function isUsual({ days, hours }, text) {
  const time = new Date(text);
  const hour = time.getUTCHours();
  const within = !hours || (hours[0] < (hours[1] || 24) ? hour >= hours[0] && hour < (hours[1] || 24) : hour >= hours[0] || hour < hours[1]);
  return within && (!days || days.includes((time.getUTCDay() + 6) % 7));
}

/** A time that is not when rows usually come, beside that; else with its date, beside the one that was expected. */
function timeFinding(name, { observed, expected, usual }) {
  if (usual && !isUsual(usual, observed)) return `${name} is ${dayAndHour(observed)}, where ${usually(usual)} ${/^\d/.test(usually(usual)) ? "is" : "are"} usual`;
  const text = (time) => timeText(new Date(time) / 1000);
  return expected ? `${name} is ${text(observed)} where about ${text(expected)} was expected` : `${name} is ${text(observed)}, which is unusual here`;
}

/** "amount is 912 where about 35 was expected". isTime: of a column of times, with the usual ones if training found some. */
export function finding({ feature, observed, expected, isTime, usual }, nameOf = String) {
  const name = nameOf(feature);
  if (observed === null || observed === undefined) return `${name} is missing`;
  if (isTime) return timeFinding(name, { observed, expected, usual });
  if (expected === null || expected === undefined) return `${name} is ${value(observed)}, which is unusual here`;
  if (typeof observed === "boolean") return `${name} is ${observed} where ${expected >= 0.5} was expected`;
  if (typeof expected === "string") return `${name} is ${value(observed)} where ${value(expected)} was expected`;
  return `${name} is ${value(observed)} where about ${value(expected)} was expected`;
}

/** The contributions that make up most of a score: at most three, until six tenths are explained. */
export function chief(contributions) {
  const taken = [];
  let share = 0;
  for (const each of contributions) {
    if (taken.length === 3 || (share >= 0.6 && taken.length > 0) || each.share < 0.05) break;
    taken.push(each);
    share += each.share;
  }
  return taken;
}

export function list(parts) {
  return parts.length < 2 ? parts.join("") : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}

/** Why a row got its score, in one or two sentences that need no knowledge of autoencoders. */
export function explanation({ what = "row", pValue, calibrationRows, contributions, flagged, nameOf, because }) {
  const strange = `This ${what} is ${strangeness(pValue, calibrationRows, what)}`;
  if (pValue > 0.5) return `This ${what} is ordinary: of 1,000 ordinary ${what}s about ${count(Math.round(pValue * 1000))} are at least as strange.`;
  if (because) return `${strange}; mostly because ${because}.`;
  const chiefly = chief(contributions ?? []);
  if (!chiefly.length) return `${strange}.`;
  return `${strange}; ${flagged ? "mostly because" : "what stands out most is that"} ${list(chiefly.map((each) => finding(each, nameOf)))}.`;
}

/** Name of a feature of a schema: its column, or its place in the row. stepName: of a step of a window. */
export function featureName(schema, stepName = (step) => `step ${step + 1}`) {
  return (feature) => {
    if (typeof feature === "string") return feature;
    if (schema.kind === "image" && Array.isArray(feature)) return `pixel ${feature.map((index) => index + 1).join(", ")}`;
    if (schema.kind === "timeseries") {
      const [step, channel] = Array.isArray(feature) ? feature : [feature];
      const name = schema.channels?.[channel ?? 0];
      return name === undefined ? stepName(step) : `${name} at ${stepName(step)}`;
    }
    return `value ${Array.isArray(feature) ? feature.map((index) => index + 1).join(", ") : feature + 1}`;
  };
}

export const KINDS = { tabular: "table", image: "images", timeseries: "time series" };

export function shapeOf(schema) {
  if (schema.columns.length) return plural(schema.columns.length, "column");
  if (schema.kind === "tabular") return plural(schema.row_shape[0], "value");
  if (schema.kind === "timeseries") return `${plural(schema.row_shape[0], "step")} of ${schema.channels?.length ? list(schema.channels) : schema.row_shape[1] ?? 1}`;
  return schema.row_shape.join(" × ");
}
