"""How the storyboard's page looks and plays: its style sheet and the few lines of script behind 'Play all'."""

from __future__ import annotations

STYLE = """
:root {
  --paper: #f4f0e8; --card: #fffefb; --edge: #e1d9cb; --ink: #342d28; --faint: #71675c;
  --accent: #ce5c34; --on-accent: #fff; --shadow: 0 1px 2px #5a412314, 0 6px 20px #5a412312;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #1b1815; --card: #26221e; --edge: #3a332c; --ink: #f0e8dd; --faint: #ab9d8d;
    --accent: #e8794d; --on-accent: #1b1815; --shadow: none;
  }
}
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
* { box-sizing: border-box; margin: 0; }
body {
  background: var(--paper); color: var(--ink); line-height: 1.45; overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  max-width: 80rem; margin: 0 auto; padding: clamp(1rem, 4vw, 3rem) clamp(.75rem, 3vw, 2.5rem);
}
header {
  display: flex; flex-wrap: wrap; align-items: end; justify-content: space-between; gap: 1rem;
  margin-bottom: clamp(1.25rem, 3vw, 2.25rem);
}
header > div { flex: 1 1 20rem; }
h1 { font-size: clamp(1.7rem, 1.1rem + 2.6vw, 3rem); line-height: 1.12; letter-spacing: -.02em; text-wrap: balance; }
header p { color: var(--faint); margin-top: .5rem; }
#play {
  display: inline-flex; align-items: center; gap: .6rem; font: inherit; font-weight: 600; cursor: pointer;
  background: var(--accent); color: var(--on-accent); border: 0; border-radius: 99rem; padding: .7rem 1.4rem;
}
#play[hidden] { display: none; }
#play::before {
  content: ""; width: .8em; height: .9em; background: currentColor; clip-path: polygon(0 0, 100% 50%, 0 100%);
}
#play.playing::before { clip-path: none; height: .8em; border-radius: .1em; }
#play:hover { filter: brightness(1.08); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 3px; }
ol { list-style: none; padding: 0; display: grid; gap: clamp(.9rem, 2vw, 1.5rem); }
ol.films { grid-template-columns: repeat(auto-fill, minmax(min(100%, 31rem), 1fr)); }
ol.stills { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
ol.few { grid-template-columns: minmax(0, 48rem); }
ol > li { display: grid; scroll-margin: 1rem; }
article {
  display: flex; flex-direction: column; gap: .9rem; padding: 1rem; min-width: 0;
  background: var(--card); border: 1px solid var(--edge); border-radius: 1rem; box-shadow: var(--shadow);
}
article.playing { border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent); }
@supports (grid-template-rows: subgrid) {
  ol > li, article { grid-row: span 3; grid-template: subgrid / minmax(0, 1fr); gap: .9rem; }
  article { display: grid; }
  ol:not(:has(dl)) > li, ol:not(:has(dl)) article { grid-row: span 2; }
}
.head { display: flex; gap: .75rem; }
.number {
  flex: none; display: grid; place-items: center; min-width: 2.2rem; height: 2.2rem; border-radius: 99rem;
  background: var(--accent); color: var(--on-accent); font-weight: 700; font-variant-numeric: tabular-nums;
}
h2 { flex: 1; min-width: 0; font-size: 1.12rem; font-weight: 600; line-height: 1.35; padding-top: .32rem; }
h2::first-letter { text-transform: uppercase; }
.pictures { display: flex; flex-wrap: wrap; gap: .9rem; align-items: start; }
figure { flex: 1 1 12rem; min-width: 0; }
img, video {
  display: block; width: 100%; height: auto; max-height: 80vh; object-fit: contain; border-radius: .6rem;
  background: var(--edge);
}
@media (min-width: 36rem) { .films .still:only-child { max-width: calc(50% - .45rem); } }
.screen { position: relative; }
.screen button {
  position: absolute; inset: 0; width: 100%; border: 0; border-radius: .6rem; background: none; cursor: pointer;
  transition: opacity .2s;
}
.screen button::before {
  content: ""; position: absolute; inset: calc(50% - 1.6rem) calc(50% - 1.6rem); border-radius: 99rem;
  background: #1b1815a6; transition: background .15s;
}
.screen button::after {
  content: ""; position: absolute; inset: calc(50% - .6rem) calc(50% - .65rem) calc(50% - .6rem) calc(50% - .45rem);
  background: #fff; clip-path: polygon(0 0, 100% 50%, 0 100%);
}
.screen button:hover::before { background: var(--accent); }
.playing .screen button { opacity: 0; }
figcaption { color: var(--faint); font-size: .8rem; margin-top: .35rem; }
.stills figcaption { display: none; }
dl {
  display: grid; align-content: start; gap: .45rem; border-top: 1px solid var(--edge); padding-top: .8rem;
  font-size: .93rem;
}
dl > div { display: grid; grid-template-columns: 4.2rem 1fr; }
dt { color: var(--faint); }
footer { color: var(--faint); font-size: .85rem; margin-top: clamp(1.5rem, 4vw, 3rem); }
footer ul { padding-inline-start: 1.2rem; }
@media print {
  @page { margin: 12mm; }
  :root {
    --paper: #fff; --card: #fff; --edge: #ccc; --ink: #000; --faint: #555; --accent: #ce5c34; --on-accent: #fff;
    --shadow: none;
  }
  body { padding: 0; max-width: none; font-size: 9pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h1 { font-size: 20pt; }
  header { margin-bottom: 5mm; }
  #play, .film, figcaption { display: none !important; }
  ol, ol.films, ol.stills, ol.few { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 4mm; }
  ol > li { break-inside: avoid; }
  ol > li, article { gap: 2mm; }
  article { padding: 3mm; border-radius: 3mm; }
  .number { min-width: 6mm; height: 6mm; }
  h2 { font-size: 10pt; padding-top: .4mm; }
  .head { gap: 2mm; }
  .films .still:only-child { max-width: none; }
  img { max-height: 90mm; }
  footer { font-size: 8pt; }
  dl { font-size: 8pt; padding-top: 2mm; gap: 1mm; }
  dl > div { grid-template-columns: 11mm 1fr; }
}
"""

SCRIPT = """
const button = document.getElementById("play"), films = [...document.querySelectorAll("video")];
let at = -1;
function go(next) {
  films.forEach((film) => film.pause());
  if (at >= 0) {
    films[at].onended = null;
    films[at].loop = true;
    films[at].closest("article").classList.remove("playing");
  }
  at = next < films.length ? next : -1;
  button.textContent = at < 0 ? "Play all" : "Stop";
  button.classList.toggle("playing", at >= 0);
  if (at < 0) return;
  const film = films[at];
  film.loop = false;
  film.currentTime = 0;
  film.onended = () => go(at + 1);
  film.closest("article").classList.add("playing");
  film.closest("li").scrollIntoView({ block: "nearest" });
  film.play().catch(() => { if (films[at] === film) go(films.length); });
}
for (const film of films) {
  const cover = document.createElement("button");
  cover.type = "button";
  cover.ariaLabel = "Play: " + film.ariaLabel;
  cover.onclick = () => {
    go(films.length);
    cover.remove();
    film.controls = true;
    film.focus();
    film.play();
  };
  film.controls = false;
  film.after(cover);
}
button.onclick = () => go(at < 0 ? 0 : films.length);
button.hidden = false;
"""
"""'Play all' plays the clips one after the other, and a large button covers the controls of each until it is used.
Without the script every clip shows its own controls."""
