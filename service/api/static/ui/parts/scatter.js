// Ten thousand points on a canvas, to be dragged, zoomed and asked.
import { colour, html, useEffect, useRef, useState, useTheme } from "./base.js";

const RAMP = ["#2d6cc0", "#3289b0", "#38a3a5", "#66b06f", "#9fbf3b", "#cdb333", "#eda52d", "#e3742d", "#cf3a2f"];
const REACH = 14;
const CLICK_REACH = 6;

/** Colour of a rank from 0 (least strange) to 1. */
export function rampColour(rank) {
  return RAMP[Math.min(RAMP.length - 1, Math.floor(rank * RAMP.length))];
}

/**
 * points: {x, y, rank, isRinged}, arrays of equal length; star: {x, y} or null; marks: [{x, y}] that stand out as diamonds.
 * onPick({at}) is a point that was clicked, onPick({mark}) a mark; describe gives the words for either. pinned: {x, y} that is circled.
 */
export function Scatter({ points, star, marks = [], pinned, label, describe, onPick }) {
  const canvas = useRef();
  const view = useRef(null);
  const [tip, setTip] = useState(null);
  const theme = useTheme();
  const order = useRef([]);
  const ringed = useRef([]);
  const home = () => {
    const [left, right] = extent(points.x, star?.x);
    const [bottom, top] = extent(points.y, star?.y);
    const box = canvas.current;
    const scale = 0.9 * Math.min(box.clientWidth / (right - left || 1), box.clientHeight / (top - bottom || 1));
    view.current = { x: (left + right) / 2, y: (bottom + top) / 2, scale };
  };
  const draw = useRef();
  draw.current = () => {
    const box = canvas.current;
    if (!box || !view.current) return;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [box.clientWidth, box.clientHeight];
    if (box.width !== Math.round(width * ratio) || box.height !== Math.round(height * ratio)) Object.assign(box, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    const context = box.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const { x, y, scale } = view.current;
    const size = points.x.length > 3000 ? 3 : points.x.length > 800 ? 4 : 6;
    context.globalAlpha = 0.82;
    // By colour, so that the colour changes nine times and not ten thousand; the strangest last, so that they are on top.
    for (const [tone, members] of order.current) {
      context.fillStyle = tone;
      context.beginPath();
      for (const at of members) {
        const px = width / 2 + (points.x[at] - x) * scale, py = height / 2 - (points.y[at] - y) * scale;
        if (px < -size || py < -size || px > width + size || py > height + size) continue;
        if (size > 4) { context.moveTo(px + size / 2, py); context.arc(px, py, size / 2, 0, 7); } else context.rect(px - size / 2, py - size / 2, size, size);
      }
      context.fill();
    }
    context.globalAlpha = 1;
    const screen = (place) => [width / 2 + (place.x - x) * scale, height / 2 - (place.y - y) * scale];
    context.strokeStyle = colour("--text");
    context.lineWidth = 1.5;
    for (const at of ringed.current) ring(context, ...screen({ x: points.x[at], y: points.y[at] }), size / 2 + 3);
    for (const mark of marks) drawDiamond(context, ...screen(mark));
    context.strokeStyle = colour("--accent");
    context.lineWidth = 3;
    if (pinned) ring(context, ...screen(pinned), 11);
    if (star) drawStar(context, width / 2 + (star.x - x) * scale, height / 2 - (star.y - y) * scale);
  };
  useEffect(() => {
    const byTone = new Map(RAMP.map((tone) => [tone, []]));
    points.rank.forEach((rank, at) => byTone.get(rampColour(rank)).push(at));
    order.current = [...byTone];
    ringed.current = points.rank.map((_, at) => at).filter((at) => points.isRinged[at]);
    home();
    draw.current();
    const watch = new ResizeObserver(() => draw.current());
    watch.observe(canvas.current);
    return () => watch.disconnect();
  }, [points, star]);
  useEffect(() => draw.current(), [theme, marks, pinned]);
  const below = (at) => at && nearest(points, marks, view.current, canvas.current, at);
  useGestures(canvas, view, () => draw.current(), (at) => setTip(below(at)), (at) => { const found = below(at); if (found) onPick(found); });
  const zoom = (factor) => { view.current.scale *= factor; draw.current(); };
  const type = (event) => {
    const step = 40 / view.current.scale;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[event.key];
    if (moves) { view.current.x += moves[0]; view.current.y += moves[1]; draw.current(); } else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8); else if (event.key === "0") { home(); draw.current(); } else return;
    event.preventDefault();
  };
  return html`<div class="map">
    <canvas ref=${canvas} tabindex="0" role="application" aria-label=${`${label} Arrow keys move, plus and minus zoom, 0 shows all.`} onKeyDown=${type}></canvas>
    <div class="tools"><button type="button" class="button small" aria-label="Zoom in" onClick=${() => zoom(1.4)}>+</button><button type="button" class="button small" aria-label="Zoom out" onClick=${() => zoom(1 / 1.4)}>−</button>
      <button type="button" class="button small" onClick=${() => { home(); draw.current(); }}>All</button></div>
    ${tip && html`<div class="tip" style=${{ left: `${Math.min(tip.px + 12, canvas.current.clientWidth - 170)}px`, top: `${tip.py + 12}px` }}>${describe(tip)}</div>`}
  </div>`;
}

/** Lowest and highest of many values; Math.min takes only so many arguments. */
function extent(values, one) {
  let low = one ?? Infinity, high = one ?? -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return Number.isFinite(low) ? [low, high] : [-1, 1];
}

function drawStar(context, x, y) {
  context.beginPath();
  for (let corner = 0; corner < 10; corner += 1) {
    const reach = corner % 2 ? 5 : 12;
    const angle = (corner * Math.PI) / 5 - Math.PI / 2;
    context[corner ? "lineTo" : "moveTo"](x + reach * Math.cos(angle), y + reach * Math.sin(angle));
  }
  context.closePath();
  context.lineWidth = 2.5;
  context.lineJoin = "round";
  context.strokeStyle = colour("--panel");
  context.fillStyle = colour("--text");
  context.stroke();
  context.fill();
}

function ring(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.stroke();
}

function drawDiamond(context, x, y) {
  context.beginPath();
  for (const [dx, dy] of [[0, -7], [7, 0], [0, 7], [-7, 0]]) context.lineTo(x + dx, y + dy);
  context.closePath();
  context.fillStyle = colour("--panel");
  context.fill();
  context.stroke();
}

/** The mark, or else the point, that lies nearest to a place on the screen; null where none is near. */
function nearest(points, marks, { x, y, scale }, box, { px, py }) {
  const far = (left, up) => (box.clientWidth / 2 + (left - x) * scale - px) ** 2 + (box.clientHeight / 2 - (up - y) * scale - py) ** 2;
  let best = null, least = REACH ** 2;
  marks.forEach((each, mark) => { const square = far(each.x, each.y); if (square < least) { least = square; best = { mark, px, py }; } });
  if (best) return best;
  for (let at = 0; at < points.x.length; at += 1) {
    const square = far(points.x[at], points.y[at]);
    if (square < least) { least = square; best = { at, px, py }; }
  }
  return best;
}

/** Dragging with one pointer, pinching with two, the wheel; hovering asks for the point below, a click takes it. */
function useGestures(canvas, view, draw, onHover, onClick) {
  const latest = useRef({});
  latest.current = { draw, onHover, onClick };
  useEffect(() => {
    const box = canvas.current;
    const held = new Map();
    let due = false, travelled = 0;
    const redraw = () => {
      if (due) return;
      due = true;
      requestAnimationFrame(() => { due = false; latest.current.draw(); });
    };
    const at = (event) => { const { left, top } = box.getBoundingClientRect(); return { px: event.clientX - left, py: event.clientY - top }; };
    const zoomAt = ({ px, py }, factor) => {
      const { x, y, scale } = view.current;
      const [dx, dy] = [px - box.clientWidth / 2, py - box.clientHeight / 2];
      view.current = { x: x + (dx / scale) * (1 - 1 / factor), y: y - (dy / scale) * (1 - 1 / factor), scale: scale * factor };
      redraw();
    };
    const span = () => { const [one, two] = [...held.values()]; return Math.hypot(one.px - two.px, one.py - two.py); };
    const down = (event) => { box.setPointerCapture(event.pointerId); held.set(event.pointerId, at(event)); travelled = held.size > 1 ? Infinity : 0; latest.current.onHover(null); };
    const move = (event) => {
      const before = held.get(event.pointerId);
      const now = at(event);
      if (!before) { latest.current.onHover(now); return; }
      const old = held.size === 2 ? span() : 0;
      held.set(event.pointerId, now);
      travelled += Math.hypot(now.px - before.px, now.py - before.py);
      view.current.x -= (now.px - before.px) / view.current.scale / held.size;
      view.current.y += (now.py - before.py) / view.current.scale / held.size;
      if (held.size === 2 && old > 0) zoomAt(now, span() / old); else redraw();
    };
    const up = (event) => {
      if (held.delete(event.pointerId) && event.type === "pointerup" && travelled < CLICK_REACH) latest.current.onClick(at(event));
    };
    const wheel = (event) => { event.preventDefault(); latest.current.onHover(null); zoomAt(at(event), Math.exp(-event.deltaY * 0.0016)); };
    const leave = () => latest.current.onHover(null);
    const listeners = { pointerdown: down, pointermove: move, pointerup: up, pointercancel: up, pointerleave: leave };
    for (const [name, listener] of Object.entries(listeners)) box.addEventListener(name, listener);
    box.addEventListener("wheel", wheel, { passive: false });
    return () => { for (const [name, listener] of Object.entries(listeners)) box.removeEventListener(name, listener); box.removeEventListener("wheel", wheel); };
  }, []);
}
