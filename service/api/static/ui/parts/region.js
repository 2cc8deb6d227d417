// Where in an image an error is, in words.
import { list } from "./words.js";

const THIRDS = [0, 1, 2];

/** Where in an image most of the error is: "the upper left", "the middle and the lower right". */
export function region(errors, { height, width }) {
  const cells = Array(9).fill(0);
  errors.forEach((error, at) => { cells[Math.floor((3 * Math.floor(at / width)) / height) * 3 + Math.floor((3 * (at % width)) / width)] += error; });
  const greatest = Math.max(...cells);
  if (!greatest) return "the whole image";
  const names = [...new Set(groups(cells.map((cell) => cell >= greatest / 2)).map(areaName))];
  return names.length > 3 ? "several parts of the image" : list(names);
}

/** The marked cells of a 3 by 3 grid, those that share a side together. */
function groups(isMarked) {
  const left = new Set([...isMarked.keys()].filter((cell) => isMarked[cell]));
  const found = [];
  for (const first of left) {
    const group = [first];
    left.delete(first);
    for (const cell of group) {
      for (const other of left) {
        if (Math.abs((cell % 3) - (other % 3)) + Math.abs(Math.floor(cell / 3) - Math.floor(other / 3)) !== 1) continue;
        left.delete(other);
        group.push(other);
      }
    }
    found.push(group);
  }
  return found;
}

function areaName(group) {
  const rows = THIRDS.filter((third) => group.some((cell) => Math.floor(cell / 3) === third));
  const columns = THIRDS.filter((third) => group.some((cell) => cell % 3 === third));
  if (rows.length === 3 && columns.length === 3) return group.length > 6 ? "the whole image" : "large parts of the image";
  const side = (thirds, low, high) => (thirds.length === 3 || (thirds.length === 1 && thirds[0] === 1) ? "" : thirds[0] === 0 ? low : high);
  const end = side(rows, "upper", "lower"), flank = side(columns, "left", "right");
  if (end && flank) return `the ${end} ${flank}`;
  if (end) return columns.length === 3 ? `the ${end} part` : `the ${end} middle`;
  if (flank) return rows.length === 3 ? `the ${flank} side` : `the middle of the ${flank} side`;
  if (rows.length === 3) return "the middle from top to bottom";
  return columns.length === 3 ? "the middle from side to side" : "the middle";
}
