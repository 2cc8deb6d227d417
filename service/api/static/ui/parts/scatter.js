// Ten thousand points on a canvas, to be dragged, zoomed and asked.
import { colour, html, useEffect, useRef, useState, useTheme } from "./base.js";

const RAMP = ["#2d6cc0", "#3289b0", "#38a3a5", "#66b06f", "#9fbf3b", "#cdb333", "#eda52d", "#e3742d", "#cf3a2f"];
const REACH = 14;

/** Colour of a rank from 0 (least strange) to 1. */
export function rampColour(rank) {
  return RAMP[Math.min(RAMP.length - 1, Math.floor(rank * RAMP.length))];
}

/**
 * points: {x, y, rank: Float32Array-like of equal length}; star: {x, y} or null.
 * describe(at) gives the words for a point.
 */
export function Scatter({ points, star, label, describe }) {
  const canvas = useRef();
  const view = useRef(null);
  const [tip, setTip] = useState(null);
  const theme = useTheme();
  const order = useRef([]);
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
    if (star) drawStar(context, width / 2 + (star.x - x) * scale, height / 2 - (star.y - y) * scale);
  };
  useEffect(() => {
    const byTone = new Map(RAMP.map((tone) => [tone, []]));
    points.rank.forEach((rank, at) => byTone.get(rampColour(rank)).push(at));
    order.current = [...byTone];
    home();
    draw.current();
    const watch = new ResizeObserver(() => draw.current());
    watch.observe(canvas.current);
    return () => watch.disconnect();
  }, [points, star]);
  useEffect(() => draw.current(), [theme]);
  useGestures(canvas, view, () => draw.current(), (at) => setTip(at && nearestPoint(points, view.current, canvas.current, at)));
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
    ${tip && html`<div class="tip" style=${{ left: `${Math.min(tip.px + 12, canvas.current.clientWidth - 170)}px`, top: `${tip.py + 12}px` }}>${describe(tip.at)}</div>`}
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

function nearestPoint(points, { x, y, scale }, box, { px, py }) {
  let best = null, least = REACH ** 2;
  for (let at = 0; at < points.x.length; at += 1) {
    const dx = box.clientWidth / 2 + (points.x[at] - x) * scale - px, dy = box.clientHeight / 2 - (points.y[at] - y) * scale - py;
    const far = dx * dx + dy * dy;
    if (far < least) { least = far; best = { at, px, py }; }
  }
  return best;
}

/** Dragging with one pointer, pinching with two, the wheel; hovering asks for the point below. */
function useGestures(canvas, view, draw, onHover) {
  const latest = useRef({});
  latest.current = { draw, onHover };
  useEffect(() => {
    const box = canvas.current;
    const held = new Map();
    let due = false;
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
    const down = (event) => { box.setPointerCapture(event.pointerId); held.set(event.pointerId, at(event)); latest.current.onHover(null); };
    const move = (event) => {
      const before = held.get(event.pointerId);
      const now = at(event);
      if (!before) { latest.current.onHover(now); return; }
      const old = held.size === 2 ? span() : 0;
      held.set(event.pointerId, now);
      view.current.x -= (now.px - before.px) / view.current.scale / held.size;
      view.current.y += (now.py - before.py) / view.current.scale / held.size;
      if (held.size === 2 && old > 0) zoomAt(now, span() / old); else redraw();
    };
    const up = (event) => held.delete(event.pointerId);
    const wheel = (event) => { event.preventDefault(); latest.current.onHover(null); zoomAt(at(event), Math.exp(-event.deltaY * 0.0016)); };
    const leave = () => latest.current.onHover(null);
    const listeners = { pointerdown: down, pointermove: move, pointerup: up, pointercancel: up, pointerleave: leave };
    for (const [name, listener] of Object.entries(listeners)) box.addEventListener(name, listener);
    box.addEventListener("wheel", wheel, { passive: false });
    return () => { for (const [name, listener] of Object.entries(listeners)) box.removeEventListener(name, listener); box.removeEventListener("wheel", wheel); };
  }, []);
}
