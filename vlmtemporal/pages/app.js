'use strict';
(() => {
const $ = selector => document.querySelector(selector);
const video = () => $('#vt-video video');

// ---------------------------------------------------------------- the clip begins where the player stands
const start = () => $('#vt-start input');
function putStart(t) {
  const field = start();
  if (!field || document.activeElement === field) return;
  field.value = Math.round(t*10)/10;
  field.dispatchEvent(new Event('input', {bubbles: true}));
}
function heads() {
  const v = video();
  for (const strip of document.querySelectorAll('#vt-strip .vt-strip'))
    strip.querySelector('.vt-head').style.left = (v ? 100*v.currentTime/strip.dataset.duration : 0) + '%';
}
function seek(t) {
  const v = video();
  if (v && v.readyState) v.currentTime = Math.max(t, 0);
  putStart(t);
}
const ofPlayer = event => event.target === video();
for (const name of ['timeupdate', 'seeked', 'pause'])
  document.addEventListener(name, e => { if (ofPlayer(e)) { putStart(video().currentTime); heads(); } }, true);
document.addEventListener('loadedmetadata', e => { // an example comes with the moment that is worth a look
  if (ofPlayer(e) && start()) video().currentTime = Math.min(+start().value || 0, video().duration);
}, true);

document.addEventListener('change', e => { if (e.target === start()) seek(+e.target.value); }, true);
document.addEventListener('click', e => {
  const jump = e.target.closest('[data-seek]'), strip = e.target.closest('#vt-strip .vt-strip');
  if (jump) seek(+jump.dataset.seek);
  else if (strip) {
    const box = strip.getBoundingClientRect();
    seek((e.clientX - box.left)/box.width*strip.dataset.duration);
  }
});

// ---------------------------------------------------------------- what a screen reader is told
new MutationObserver(() => {
  heads();
  const said = $('#vt-said'), found = [...document.querySelectorAll('[data-say]')].filter(e => e.offsetParent !== null);
  const text = found.map(e => e.dataset.say).join(' ');
  if (said && said.textContent !== text) said.textContent = text;
}).observe(document.documentElement, {childList: true, subtree: true});
})();
