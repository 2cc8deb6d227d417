// A series as `autoencoder score` reads it (service/tables/series.py): readings, their times, even steps, and what is flagged.
import { cellOf, decimalMarks, parseCsv } from "./csv.js";
import { count, plural } from "./words.js";

const HOUR_S = 3600, DAY_S = 86_400, HALF_YEAR_S = 180 * DAY_S, SUNDAY = 3;
const FIRST_UNIX_S = 978_307_200, LAST_UNIX_S = 4_102_444_800;
const MOST_EMPTY = 0.5;
const LONGER_STEPS = [1, 2, 3, 5, 10];
const ISO = /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d(?:[.,]\d+)?))?)?\s*(?:Z|([+-])(\d\d):?(\d\d)?)?$/i;
const CLOCK = /^(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?$/;

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};
const isNumber = (cell) => cell.trim() !== "" && Number.isFinite(Number(cell));

/**
 * The series of a text: {points, times, places, readings, start, step}.
 * points: readings at even steps, null where there is none. places: the point of each reading. times: its seconds since 1970, null where
 * the text has none. readings: {names, cells} as in the text. stepS: seconds of a step in training, or null.
 */
export function seriesOf(text, channels, stepS = null) {
  const { readings, values, timed } = readingsOf(text, channels);
  if (!timed) return { readings, points: values, places: values.map((_, at) => at), times: null, start: 0, step: 1 };
  const grid = evenGrid(timed, stepS);
  const length = grid.places.at(-1) + 1;
  const sums = Array.from({ length }, () => channels.map(() => [0, 0]));
  values.forEach((reading, row) => reading.forEach((value, channel) => {
    if (value === null) return;
    const sum = sums[grid.places[row]][channel];
    sum[0] += value;
    sum[1] += 1;
  }));
  const points = sums.map((point) => point.map(([sum, amount]) => (amount ? sum / amount : null)));
  if (stepS !== null && points.filter(isIncomplete).length > MOST_EMPTY * length) throw new Error(`The model was trained on steps of ${duration(stepS)}; most of these have no reading here.`);
  return { readings, points, places: grid.places, times: timed, start: timed[0], step: grid.step };
}

export const isIncomplete = (point) => point.some((value) => value === null);

/** Readings by the names in the first line, with their times if a column has some; or the numbers as they come. */
function readingsOf(text, channels) {
  const records = parseCsv(text.replace(/^\uFEFF/, "").trim()).map(({ cells }) => cells);
  const names = records[0]?.map((cell) => cell.trim()) ?? [];
  if (channels.every((name) => names.includes(name))) {
    const cells = records.slice(1);
    const column = (name) => cells.map((row) => row[names.indexOf(name)] ?? "");
    const columns = channels.map(column);
    const marks = decimalMarks(columns);
    const values = cells.map((row, at) => columns.map((each, channel) => {
      const value = cellOf(each[at], "numeric", marks[channel]);
      if (typeof value === "string") throw new Error(`Row ${count(at + 1)}, column “${channels[channel]}”: “${value}” is not a number.`);
      return value;
    }));
    const rest = names.filter((name) => !channels.includes(name)).map((name) => [name, column(name)]);
    return { readings: { names, cells }, values, timed: cells.length > 1 ? findTimes(rest) : null };
  }
  const lines = records.map((row) => row.join(" ").trim().split(/[\s,;]+/).filter(Boolean));
  const given = channels.length === 1 ? lines.flat().map((cell) => [cell]) : lines;
  const isWrong = (cell) => !isNumber(cell) && cell.toLowerCase() !== "nan";
  const cells = given[0]?.some(isWrong) ? given.slice(1) : given;
  const wrong = cells.findIndex((row) => row.length !== channels.length || row.some(isWrong));
  if (wrong >= 0) throw new Error(`Point ${count(wrong + 1)} is not ${plural(channels.length, "number")}. A first line may name the columns: ${channels.join(", ")}.`);
  return { readings: { names: channels, cells }, values: cells.map((row) => row.map((cell) => (isNumber(cell) ? Number(cell) : null))), timed: null };
}

/** Seconds of the first column that holds times; dates in one column and times of day in another are one time. */
function findTimes(columns) {
  for (const [name, cells] of columns) {
    const found = unixTimes(cells) ?? writtenTimes(name, cells);
    if (!found) continue;
    if (found.some((seconds) => seconds % DAY_S)) return found;
    const clock = columns.map(([, each]) => each.map((cell) => CLOCK.exec(cell.trim()))).find((parts) => parts.every(Boolean));
    return clock ? found.map((seconds, at) => seconds + HOUR_S * clock[at][1] + 60 * clock[at][2] + Number(clock[at][3] ?? 0)) : found;
  }
  return null;
}

function unixTimes(cells) {
  if (!cells.every((cell) => /^\d{9,13}$/.test(cell.trim()))) return null;
  const numbers = cells.map(Number);
  const factor = [1, 1000].find((each) => numbers.every((value) => value >= FIRST_UNIX_S * each && value <= LAST_UNIX_S * each));
  const rises = numbers.every((value, at) => at === 0 || value >= numbers[at - 1]) && numbers[0] < numbers.at(-1);
  return factor && rises ? numbers.map((value) => value / factor) : null;
}

function writtenTimes(name, cells) {
  const times = cells.map((cell) => secondsOf(cell));
  const wrong = times.map((seconds, at) => (Number.isNaN(seconds) ? at : -1)).filter((at) => at >= 0);
  if (wrong.length > cells.length / 2 || times.every((seconds) => seconds === null)) return null;
  if (wrong.length) throw new Error(`Row ${count(wrong[0] + 1)}, column “${name}”: not a time, as in 2026-01-31 12:00:00.`);
  const missing = times.indexOf(null);
  if (missing >= 0) throw new Error(`Column “${name}” lacks a time in row ${count(missing + 1)}.`);
  return times;
}

/** Seconds since 1970 in UTC; null where none is given, NaN where the text is no time. */
function secondsOf(cell) {
  const text = cellOf(cell, "timestamp");
  if (text === null || typeof text === "number") return text === null ? null : text / 1000;
  const found = ISO.exec(text);
  if (!found) return NaN;
  const [, year, month, day, hours = 0, minutes = 0, seconds = "0", sign, zoneHours = 0, zoneMinutes = 0] = found;
  const zone = (sign === "-" ? -1 : 1) * (HOUR_S * zoneHours + 60 * zoneMinutes);
  return Date.UTC(year, month - 1, day, hours, minutes) / 1000 + Number(seconds.replace(",", ".")) - zone;
}

/** Readings at the nearest of even steps; of their usual distance where no step is given: {places, step}. */
function evenGrid(given, step) {
  const times = throughClockChanges(given);
  const steps = times.slice(1).map((time, at) => time - times[at]);
  const back = steps.findIndex((each) => each < 0);
  if (back >= 0) throw new Error(`Row ${count(back + 2)} is earlier than the row before it; sort the file by its times.`);
  const forward = steps.filter((each) => each > 0);
  if (!forward.length) throw new Error("All times are the same.");
  if (step !== null) return { places: placesOf(times, step), step };
  const usual = median(forward);
  for (const factor of LONGER_STEPS) {
    // The error of the usual step must not add up over the series.
    const even = factor > 1 ? usual * factor : (times.at(-1) - times[0]) / forward.reduce((sum, each) => sum + Math.max(1, Math.round(each / usual)), 0);
    const places = placesOf(times, even);
    if (new Set(places).size >= (1 - MOST_EMPTY) * Math.max(places.at(-1) + 1, factor > 1 ? places.length : 0)) return { places, step: even };
  }
  throw new Error("The times are too uneven: with their usual step more than half of the series would be missing.");
}

function placesOf(times, step) {
  const places = times.map((time) => (time - times[0]) / step);
  const aside = median(places.map((place) => place - Math.round(place)));
  const whole = places.map((place) => Math.floor(place - aside + 0.5 + 1e-6));
  return whole.map((place) => place - whole[0]);
}

/** Times that go on where local clocks were put back by an hour, in the first hours of a Sunday, and not again for half a year. */
function throughClockChanges(times) {
  const steps = times.slice(1).map((time, at) => time - times[at]);
  if (steps.every((step) => step > 0) || steps.every((step) => step <= 0)) return times;
  const usual = median(steps.filter((step) => step > 0));
  const isBack = (step, at) => step <= 0 && Math.abs(step + HOUR_S - usual) <= usual / 2 && Math.floor(times[at + 1] / DAY_S) % 7 === SUNDAY && times[at + 1] % DAY_S < 4 * HOUR_S;
  const back = steps.map(isBack);
  const when = times.slice(1).filter((_, at) => back[at]);
  if (when.some((time, at) => at > 0 && time - when[at - 1] <= HALF_YEAR_S)) return times;
  let shift = 0;
  return times.map((time, at) => { shift += at > 0 && back[at - 1] ? HOUR_S : 0; return time + shift; });
}

/** Parts of a series that have every reading, as [from, to): what a model that never saw a gap can score. */
export function wholeParts(points) {
  const parts = [];
  points.forEach((point, at) => {
    if (isIncomplete(point)) return;
    if (parts.at(-1)?.[1] === at) parts.at(-1)[1] = at + 1;
    else parts.push([at, at + 1]);
  });
  return parts;
}

/** Flagged readings that follow each other, each with where it is worst: {first, last, from, to, peak, score, readings}; first and last are readings, from, to and peak points. */
export function stretchesOf({ places, scores }, isFlagged) {
  const found = [];
  let open = false;
  places.forEach((point, row) => {
    const flagged = isFlagged(point);
    if (flagged && !open) found.push({ first: row, from: point, score: -Infinity });
    open = flagged;
    if (!flagged) return;
    const stretch = found.at(-1);
    Object.assign(stretch, { last: row, to: point, readings: row - stretch.first + 1 });
    if (scores[point] > stretch.score) Object.assign(stretch, { score: scores[point], peak: point });
  });
  return found;
}

const UNITS = [[DAY_S, "d"], [HOUR_S, "h"], [60, "min"], [1, "s"]];

/** Seconds in words with at most two units: "1 d 4 h". */
export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  const at = UNITS.findIndex(([size]) => seconds >= size);
  const [size, unit] = UNITS[at];
  const next = UNITS[at + 1];
  const rest = next ? Math.round((seconds % size) / next[0]) : 0;
  const whole = Math.floor(seconds / size);
  return rest && rest * next[0] < size ? `${whole} ${unit} ${rest} ${next[1]}` : `${Math.round(seconds / size)} ${unit}`;
}
