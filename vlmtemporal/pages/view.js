'use strict';
(() => {
const $ = id => document.getElementById(id);
const data = JSON.parse($('data').textContent);
const {operations, lines, duration, fps} = data;
const video = $('video');
const truth = lines[0].segments; // [operation, start, end, probability, is a gap]
const OP = 0, START = 1, END = 2, P = 3, GAP = 4;
const boundaries = truth.map(s => s[START]).concat(truth.length ? [truth[truth.length - 1][END]] : []);

// ---------------------------------------------------------------- words
const two = n => String(n).padStart(2, '0');
function clockText(t, digits = 1) {
  const unit = 10**digits, all = Math.round(Math.max(t, 0)*unit), s = Math.floor(all/unit);
  const rest = digits ? '.' + String(all % unit).padStart(digits, '0') : '';
  const h = Math.floor(s/3600), m = Math.floor(s/60) % 60;
  return (h ? `${h}:${two(m)}` : `${m}`) + `:${two(s % 60)}${rest}`;
}
function make(tag, text, className) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text; // a label is never read as HTML
  if (className) e.className = className;
  return e;
}
function swatch(op) {
  const e = make('span', '', 'swatch');
  e.style.background = operations[op].colour;
  return e;
}
const reduced = matchMedia('(prefers-reduced-motion: reduce)').matches;

// ---------------------------------------------------------------- time
let hasVideo = Boolean(video), own = 0, ownRunning = false, ownLast = 0, rate = 1, wanted = null;
const now = () => hasVideo ? (wanted ?? video.currentTime) : own;
const running = () => hasVideo ? !video.paused && !video.ended : ownRunning;

function seek(t) {
  t = Math.min(Math.max(t, 0), Math.max(duration - .001, 0));
  if (hasVideo) {
    wanted = t; // shown at once; the picture follows
    video.currentTime = t;
  } else own = t;
  follow(t);
  draw();
}
function play() {
  if (hasVideo) video.paused ? video.play().catch(() => {}) : video.pause();
  else {
    ownRunning = !ownRunning;
    ownLast = performance.now();
    if (ownRunning && own >= duration - .01) own = 0;
    requestAnimationFrame(tick);
  }
  draw();
}
function tick(at) {
  if (!running()) return draw();
  if (!hasVideo) {
    own = Math.min(own + (at - ownLast)/1000*rate, duration);
    ownLast = at;
    if (own >= duration) ownRunning = false;
  }
  follow(now());
  draw();
  requestAnimationFrame(tick);
}
function noVideo(why) {
  own = now();
  hasVideo = false;
  video.hidden = true;
  $('none').hidden = false;
  $('none').textContent = why;
  draw();
}
if (video) {
  for (const name of ['pause', 'ended', 'loadedmetadata', 'ratechange']) video.addEventListener(name, () => draw());
  video.addEventListener('play', () => requestAnimationFrame(tick));
  video.addEventListener('seeked', () => { wanted = null; follow(now()); draw(); });
  video.addEventListener('timeupdate', () => { if (wanted === null) { follow(now()); draw(); } });
  const said = 'The video cannot be shown here: ' + $('video').dataset.name + '. The timeline below runs without it.';
  video.addEventListener('error', () => noVideo(said));
  if (video.error) noVideo(said);
}

// ---------------------------------------------------------------- segments
function at(segments, t) { // the last one that has begun, or -1
  let low = 0, high = segments.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (segments[middle][START] <= t + 1e-6) low = middle + 1; else high = middle;
  }
  return low - 1;
}
function covering(segments, t) {
  const i = at(segments, t);
  return i >= 0 && t < segments[i][END] - 1e-9 ? i : -1;
}
function jump(places, direction) {
  const t = now();
  const next = direction > 0 ? places.find(b => b > t + .02) : places.findLast(b => b < t - .25);
  if (next !== undefined) seek(next);
}
const wrongPlaces = lines.length > 1 ? [...new Set(lines.slice(1).flatMap(l => l.wrong.map(w => w[0])))]
  .sort((a, b) => a - b) : [];

// ---------------------------------------------------------------- the timeline
const over = $('over'), detail = $('detail'), tip = $('tip');
const spans = [5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600].filter(s => s < duration).concat([duration]);
let span = spans.findLast(s => s <= 60) ?? spans[0], from = 0, chosen = null, colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ['text', 'soft', 'line', 'track', 'wrong', 'card'])
    colours[name] = style.getPropertyValue('--' + name).trim();
}
function follow(t) {
  if (t < from + .05*span || t > from + .9*span) from = t - .3*span;
  from = Math.min(Math.max(from, 0), Math.max(duration - span, 0));
}
function zoom(direction) {
  const i = Math.min(Math.max(spans.indexOf(span) + direction, 0), spans.length - 1);
  const share = (now() - from)/span;
  span = spans[i];
  from = now() - Math.min(Math.max(share, .1), .9)*span;
  follow(now());
  draw();
}
function prepared(canvas, height) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth;
  if (canvas.width !== Math.round(width*ratio) || canvas.height !== Math.round(height*ratio)) {
    canvas.width = Math.round(width*ratio);
    canvas.height = Math.round(height*ratio);
    canvas.style.height = height + 'px';
  }
  const g = canvas.getContext('2d');
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  return [g, width];
}
function bars(g, line, a, length, width, top, height, words) {
  const scale = width/length, segments = line.segments;
  g.globalAlpha = 1;
  g.fillStyle = colours.track;
  g.fillRect(0, top, width, height);
  for (let i = Math.max(at(segments, a), 0); i < segments.length && segments[i][START] < a + length; i++) {
    const s = segments[i], left = (s[START] - a)*scale, w = Math.max((s[END] - s[START])*scale, .75);
    const o = operations[s[OP]], rest = w > 3 ? 1 : 0, inset = s[GAP] ? height*.36 : 0;
    g.globalAlpha = chosen === null || chosen === s[OP] ? 1 : .16;
    g.fillStyle = o.colour;
    g.fillRect(left, top + inset, w - rest, height - 2*inset);
    const visible = Math.min(left + w, width) - Math.max(left, 0);
    if (!words || visible < 26 || s[GAP]) continue;
    g.save();
    g.beginPath();
    g.rect(Math.max(left, 0) + 1, top, visible - 5, height);
    g.clip();
    g.fillStyle = o.text;
    g.fillText(o.name, Math.max(left, 0) + 5, top + height/2 + .5);
    g.restore();
  }
  g.globalAlpha = 1;
}
function strip(g, wrong, a, length, width, top, height) {
  g.fillStyle = colours.wrong;
  for (const [start, end] of wrong) {
    if (end < a || start > a + length) continue;
    g.fillRect((start - a)/length*width, top, Math.max((end - start)/length*width, 1), height);
  }
}
const OVER_BAR = 16, OVER_STRIP = 4, BAR = 30, STRIP = 6, CAPTION = 16, AXIS = 20;
function drawOver() {
  const height = lines.reduce((h, l) => h + OVER_BAR + 3 + (l.wrong ? OVER_STRIP + 1 : 0), 0);
  const [g, width] = prepared(over, height);
  let top = 0;
  for (const line of lines) {
    if (line.wrong) {
      strip(g, line.wrong, 0, duration, width, top, OVER_STRIP);
      top += OVER_STRIP + 1;
    }
    bars(g, line, 0, duration, width, top, OVER_BAR, false);
    top += OVER_BAR + 3;
  }
}
function drawDetail(t) {
  const height = AXIS + lines.reduce((h, l) => h + CAPTION + BAR + 4 + (l.wrong ? STRIP + 2 : 0), 0);
  const [g, width] = prepared(detail, height);
  g.textBaseline = 'middle';
  const steps = [.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800], step = steps.find(s => s/span*width > 64) ?? 3600;
  g.font = '11px system-ui, sans-serif';
  for (let x = Math.ceil(from/step)*step; x <= from + span; x += step) {
    const left = (x - from)/span*width;
    g.fillStyle = colours.line;
    g.fillRect(left, 0, 1, height - AXIS + 4);
    g.fillStyle = colours.soft;
    if (left < width - 34) g.fillText(clockText(x, step < 1 ? 1 : 0), left + 3, height - AXIS/2 + 1);
  }
  let top = 0;
  for (const line of lines) {
    g.font = '11px system-ui, sans-serif';
    g.fillStyle = colours.card;
    g.fillRect(0, top, Math.min(g.measureText(line.caption).width + 4, width), CAPTION);
    g.fillStyle = colours.soft;
    g.fillText(line.caption, 0, top + CAPTION/2, width);
    top += CAPTION;
    if (line.wrong) {
      strip(g, line.wrong, from, span, width, top, STRIP);
      top += STRIP + 2;
    }
    g.font = '12px system-ui, "Noto Sans", "Noto Sans CJK JP", sans-serif';
    bars(g, line, from, span, width, top, BAR, true);
    top += BAR + 4;
  }
  const head = (t - from)/span*width;
  g.fillStyle = colours.card;
  g.fillRect(head - 2, 0, 4, top + 4);
  g.fillStyle = colours.text;
  g.fillRect(head - 1, 0, 2, top + 4);
}

// ---------------------------------------------------------------- what is being done
const said = lines.map((line, i) => {
  const row = make('tr');
  const cells = ['now', 'next'].map(() => {
    const cell = make('td'), words = make('span', '', 'words'), when = make('span', '', 'when');
    cell.append(words, when);
    return {cell, words, when, op: undefined, text: ''};
  });
  row.append(make('th', line.name), ...cells.map(c => c.cell));
  $('now').append(row);
  return cells;
});
function tell(c, op, when, wrong) {
  if (c.op !== op) {
    c.words.replaceChildren(...(op === null ? [make('span', '–', 'soft')] : [swatch(op), operations[op].name]));
    c.words.title = op === null ? '' : operations[op].name;
    c.op = op;
  }
  if (c.text !== when) c.when.textContent = c.text = when;
  c.cell.classList.toggle('wrong', wrong);
}
function tellAll(t) {
  let true_ = null;
  lines.forEach((line, i) => {
    const segments = line.segments, k = at(segments, t), inside = covering(segments, t) >= 0;
    const s = inside ? segments[k] : null, next = segments[k + 1];
    const sure = s && s[P] !== null ? `, ${Math.round(100*s[P])} %` : '';
    const op = s ? s[OP] : null;
    if (!i) true_ = op;
    const length = s ? `${(t - s[START]).toFixed(1)} of ${(s[END] - s[START]).toFixed(1)} s${sure}` : '';
    tell(said[i][0], op, length, i > 0 && op !== null && true_ !== null && op !== true_);
    tell(said[i][1], next ? next[OP] : null, next ? `in ${(next[START] - t).toFixed(1)} s` : '', false);
  });
}

// ---------------------------------------------------------------- the table
const body = $('rows'), filter = $('filter'), search = $('search'), onlyWrong = $('onlywrong');
const rows = truth.map((s, i) => {
  const row = make('tr'), link = make('a', clockText(s[START])), name = make('td', undefined, 'name');
  link.href = `#t=${s[START]}`;
  const start = make('td', undefined, 'number');
  start.append(link);
  name.append(swatch(s[OP]), operations[s[OP]].name + (s[GAP] ? ' (gap)' : ''));
  row.append(make('td', i + 1, 'number soft least'), start, make('td', `${(s[END] - s[START]).toFixed(1)} s`, 'number'), name);
  for (const line of lines.slice(1)) {
    const share = line.shares[i];
    row.append(make('td', share === null ? '' : `${Math.round(100*share)} %`,
                    'number' + (share !== null && share < .5 ? ' wrong' : '')));
  }
  if (s[GAP]) row.className = 'gap';
  row.addEventListener('click', e => { e.preventDefault(); seek(s[START]); });
  return row;
});
body.append(...rows);
function isShown(i) {
  const s = truth[i], text = search.value.trim().toLocaleLowerCase();
  if (chosen !== null && s[OP] !== chosen) return false;
  if (text && !operations[s[OP]].name.toLocaleLowerCase().includes(text)) return false;
  return !(onlyWrong && onlyWrong.checked) || lines.slice(1).some(l => l.shares[i] !== null && l.shares[i] < .5);
}
function applyFilter() {
  let count = 0, seconds = 0;
  rows.forEach((row, i) => {
    const show = isShown(i);
    row.hidden = !show;
    if (show) { count++; seconds += truth[i][END] - truth[i][START]; }
  });
  $('count').textContent = `${count.toLocaleString('en')} of ${rows.length.toLocaleString('en')} segments, ${clockText(seconds)}`;
}
function choose(op) {
  chosen = op;
  filter.value = op === null ? '' : String(op);
  for (const row of legend) row.classList.toggle('chosen', Number(row.dataset.op) === op);
  applyFilter();
  drawOver();
  draw();
}
const legend = [...document.querySelectorAll('.legend tr[data-op]')];
for (const row of legend) {
  row.querySelector('.swatch').style.background = operations[row.dataset.op].colour;
  row.addEventListener('click', () => choose(chosen === Number(row.dataset.op) ? null : Number(row.dataset.op)));
}
filter.addEventListener('change', () => choose(filter.value === '' ? null : Number(filter.value)));
search.addEventListener('input', applyFilter);
if (onlyWrong) onlyWrong.addEventListener('change', applyFilter);
let current = -1;
function mark(t) {
  const i = at(truth, t);
  if (i === current) return;
  if (current >= 0) rows[current].classList.remove('current');
  current = i;
  if (i < 0) return;
  const row = rows[i], box = $('table');
  row.classList.add('current');
  if (row.hidden || box.matches(':hover')) return; // somebody reads there
  const top = row.offsetTop - 40;
  if (top < box.scrollTop || top > box.scrollTop + box.clientHeight - 90) box.scrollTop = top - 40;
}

// ---------------------------------------------------------------- all of it
function draw() {
  const t = now();
  drawDetail(t);
  const width = over.clientWidth;
  $('head').style.transform = `translateX(${t/duration*width}px)`;
  $('window').style.transform = `translateX(${from/duration*width}px)`;
  $('window').style.width = `${Math.max(span/duration*width, 3)}px`;
  $('window').hidden = span >= duration;
  $('time').textContent = `${clockText(t)} / ${clockText(duration)}`;
  $('play').textContent = running() ? 'Pause' : 'Play';
  $('span').textContent = `${clockText(span, 0)} shown`;
  tellAll(t);
  mark(t);
}
function timeAt(canvas, e) {
  const box = canvas.getBoundingClientRect(), share = Math.min(Math.max((e.clientX - box.left)/box.width, 0), 1);
  return canvas === over ? share*duration : from + share*span;
}
function lineAt(canvas, e) { // the line under the pointer
  let y = e.clientY - canvas.getBoundingClientRect().top;
  const isOver = canvas === over;
  for (const line of lines) {
    y -= isOver ? OVER_BAR + 3 + (line.wrong ? OVER_STRIP + 1 : 0) : CAPTION + BAR + 4 + (line.wrong ? STRIP + 2 : 0);
    if (y < 0) return line;
  }
  return null;
}
function showTip(canvas, e) {
  const line = lineAt(canvas, e), t = timeAt(canvas, e), i = line ? covering(line.segments, t) : -1;
  tip.hidden = i < 0;
  if (i < 0) return;
  const s = line.segments[i], box = tip.parentElement.getBoundingClientRect();
  const sure = s[P] === null ? '' : `, ${Math.round(100*s[P])} %`;
  tip.textContent = `${operations[s[OP]].name}${s[GAP] ? ' (gap)' : ''}: ${clockText(s[START])} to ${clockText(s[END])}, ` +
    `${(s[END] - s[START]).toFixed(1)} s${sure}`;
  tip.style.left = `${Math.min(Math.max(e.clientX - box.left + 12, 4), box.width - tip.offsetWidth - 4)}px`;
  tip.style.top = `${canvas.getBoundingClientRect().top - box.top - tip.offsetHeight - 4}px`;
}
for (const canvas of [over, detail]) {
  canvas.addEventListener('pointerdown', e => {
    if (e.button) return;
    const t = timeAt(canvas, e);
    if (canvas === over) canvas.setPointerCapture(e.pointerId);
    seek(t);
  });
  canvas.addEventListener('pointermove', e => {
    if (canvas === over && e.buttons & 1) seek(timeAt(canvas, e));
    if (e.pointerType === 'mouse') showTip(canvas, e);
  });
  canvas.addEventListener('pointerleave', () => { tip.hidden = true; });
}
detail.addEventListener('wheel', e => {
  const sideways = Math.abs(e.deltaX) > Math.abs(e.deltaY) || e.shiftKey;
  if (!sideways && !e.ctrlKey) return; // the page scrolls
  e.preventDefault();
  if (e.ctrlKey) return zoom(e.deltaY > 0 ? 1 : -1);
  from = Math.min(Math.max(from + (e.deltaX || e.deltaY)/detail.clientWidth*span, 0), Math.max(duration - span, 0));
  draw();
}, {passive: false});

const commands = {
  play, back: () => seek(now() - 1), forth: () => seek(now() + 1),
  previous: () => jump(boundaries, -1), next: () => jump(boundaries, 1), wrong: () => jump(wrongPlaces, 1),
  nearer: () => zoom(-1), farther: () => zoom(1),
};
for (const button of document.querySelectorAll('[data-do]'))
  button.addEventListener('click', () => commands[button.dataset.do]());
$('rate').addEventListener('change', e => {
  rate = Number(e.target.value);
  if (video) video.playbackRate = rate;
});
addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest('input, select, textarea')) return;
  const big = e.shiftKey ? 5 : 1;
  const keys = {
    ' ': play, k: play, ArrowLeft: () => seek(now() - big), ArrowRight: () => seek(now() + big),
    ',': () => seek(now() - 1/fps), '.': () => seek(now() + 1/fps),
    n: commands.next, p: commands.previous, d: commands.wrong, '+': commands.nearer, '=': commands.nearer,
    '-': commands.farther, Home: () => seek(0), End: () => seek(duration), Escape: () => choose(null),
  };
  const work = keys[e.key.length === 1 ? e.key.toLowerCase() : e.key];
  if (!work) return;
  e.preventDefault();
  e.stopPropagation();
  work();
}, true);
function fromHash() {
  const found = /^#t=([0-9.]+)$/.exec(location.hash);
  if (found) seek(Number(found[1]));
}
addEventListener('hashchange', fromHash);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { readColours(); drawOver(); draw(); });
new ResizeObserver(() => { drawOver(); draw(); }).observe(over);
readColours();
applyFilter();
drawOver();
draw();
fromHash();
document.documentElement.dataset.ready = '1';
})();
