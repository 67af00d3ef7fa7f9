"use strict";

const find = (what, inside = document) => inside.querySelector(what);
const list = (what, inside = document) => [...inside.querySelectorAll(what)];
const numbers = JSON.parse(find("#numbers").textContent);
const cards = list(".card");
const players = new Map();

/* The videos of a card, which play in step: the first one that is there leads, the others follow. */
class Player {
  constructor(card) {
    const body = find("script", card); // text until here, so that a page of a thousand clips opens at once
    body.insertAdjacentHTML("beforebegin", body.textContent);
    body.remove();
    this.card = card;
    this.fps = Number(card.dataset.fps);
    this.last = Number(card.dataset.frames) - 1;
    this.tiles = list(".tile", card);
    this.videos = list("video", card);
    this.scrub = find(".scrub", card);
    this.split = find(".split", card);
    this.playing = false;
    this.seen = false;
    this.tick = this.tick.bind(this);
    find(".play", card).addEventListener("click", () => this.toggle());
    this.scrub.addEventListener("input", () => this.show(Number(this.scrub.value)));
    this.split.addEventListener("input", () => this.divide(Number(this.split.value)));
    for (const tile of this.tiles) {
      const video = find("video", tile);
      video?.addEventListener("loadedmetadata", () => this.measure(video));
      video?.addEventListener("seeked", () => this.paint());
      video?.addEventListener("loadeddata", () => this.paint());
      video?.addEventListener("error", () => this.lose(video));
      if ("under" in tile.dataset) this.drag(find(".screen", tile));
    }
    this.tell();
  }

  /* Videos are loaded when the card comes into view, and let go when it is far away. */
  load() {
    if (this.seen) return;
    this.seen = true;
    for (const video of this.videos) {
      video.preload = "auto";
      video.src = video.dataset.src;
      if (this.frame > 0) video.currentTime = this.time(this.frame);
    }
  }

  unload() {
    if (!this.seen) return;
    this.pause();
    this.seen = false;
    for (const video of this.videos) {
      video.removeAttribute("src");
      video.load();
    }
  }

  get frame() { return Number(this.scrub.value); }
  get whole() { return this.videos.filter((video) => !video.error); }

  /* The middle of a frame, so that rounding takes no neighbor. */
  time(frame) { return (frame + 0.5) / this.fps; }

  show(frame) {
    this.pause();
    this.scrub.value = Math.min(Math.max(frame, 0), this.last);
    this.load();
    for (const video of this.videos) video.currentTime = this.time(this.frame);
    this.tell();
  }

  toggle() { this.playing ? this.pause() : this.play(); }

  async play() {
    if (this.playing || !this.whole.length) return;
    this.load();
    this.mark(true);
    if (this.frame >= this.last) this.scrub.value = 0;
    await this.start(this.frame === 0 ? 0 : this.time(this.frame));
    if (this.playing) requestAnimationFrame(this.tick);
  }

  async start(time) {
    for (const video of this.whole) {
      video.pause();
      video.currentTime = time;
    }
    await Promise.all(this.whole.map(isReady));
    if (this.playing) await Promise.allSettled(this.whole.map((video) => video.play()));
  }

  pause() {
    if (!this.playing) return;
    this.mark(false);
    for (const video of this.videos) video.pause();
    const [lead] = this.whole;
    if (lead) for (const video of this.whole) video.currentTime = this.time(this.frame);
  }

  async tick() {
    if (!this.playing) return;
    const [lead, ...others] = this.whole;
    if (!lead) return this.pause();
    if (lead.ended) {
      await this.start(0);
    } else {
      for (const video of others) {
        const late = Math.abs(video.currentTime - lead.currentTime) > Math.max(0.75 / this.fps, 0.04);
        if (late && !video.seeking && !video.ended) video.currentTime = lead.currentTime;
      }
    }
    this.scrub.value = Math.min(Math.floor(lead.currentTime * this.fps + 1e-3), this.last);
    this.tell();
    this.paint();
    requestAnimationFrame(this.tick);
  }

  mark(playing) {
    this.playing = playing;
    const button = find(".play", this.card);
    button.setAttribute("aria-pressed", String(playing));
    button.firstElementChild.textContent = playing ? "❚❚" : "▶";
  }

  tell() {
    const said = `frame ${this.frame + 1} of ${this.last + 1}, ${(this.frame / this.fps).toFixed(2)} s`;
    find(".time", this.card).textContent = said;
    this.scrub.setAttribute("aria-valuetext", said);
  }

  measure(video) {
    find(".gone", video.parentElement)?.remove();
    const ratio = `${video.videoWidth} / ${video.videoHeight}`;
    this.card.style.setProperty("--ratio", ratio);
    if (!document.documentElement.style.getPropertyValue("--ratio")) {
      document.documentElement.style.setProperty("--ratio", ratio); // what the next ones will have, most likely
    }
    this.card.classList.toggle("small", video.videoWidth < 160);
  }

  /* A page may have been taken away from its videos. */
  lose(video) {
    const said = document.createElement("span");
    said.className = "gone";
    said.textContent = "cannot be played";
    if (!find(".gone", video.parentElement)) video.after(said);
  }

  /* Left of the split a tile shows the video that it is compared with. */
  divide(percent) {
    this.split.value = Math.min(Math.max(percent, 0), 100);
    this.card.style.setProperty("--split", `${this.split.value}%`);
    this.card.classList.toggle("is-split", Number(this.split.value) > 0);
    this.paint();
  }

  drag(screen) {
    const move = (event) => {
      const box = screen.getBoundingClientRect();
      this.divide((100 * (event.clientX - box.left)) / box.width);
    };
    screen.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      screen.setPointerCapture(event.pointerId);
      move(event);
    });
    screen.addEventListener("pointermove", (event) => {
      if (screen.hasPointerCapture(event.pointerId)) move(event);
    });
  }

  paint() {
    if (Number(this.split.value) === 0) return;
    for (const tile of this.tiles) {
      const under = find("video", this.tiles[Number(tile.dataset.under)] ?? tile);
      const canvas = find("canvas", tile);
      if (!canvas || !under || under.readyState < 2) continue;
      if (canvas.width !== under.videoWidth) canvas.width = under.videoWidth;
      if (canvas.height !== under.videoHeight) canvas.height = under.videoHeight;
      canvas.getContext("2d").drawImage(under, 0, 0);
    }
  }
}

function isReady(video) {
  if (video.readyState >= 3 && !video.seeking) return null;
  return new Promise((go) => {
    for (const event of ["canplay", "error", "emptied"]) video.addEventListener(event, go, { once: true });
  });
}

function playerOf(card) {
  if (!players.has(card)) players.set(card, new Player(card));
  return players.get(card);
}

/* Near the view videos are loaded; a screen further they are let go. A player is made when it is first needed. */
const inView = new Set();
const playAll = find("#play-all");
const isPlayingAll = () => playAll.getAttribute("aria-pressed") === "true";

function watch() {
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) playerOf(target).load();
      else players.get(target)?.unload();
    }
  }, { rootMargin: "75% 0px" });
  const here = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) inView.add(target);
      else inView.delete(target);
      if (isPlayingAll()) isIntersecting ? playerOf(target).play() : players.get(target)?.pause();
    }
  });
  for (const card of cards) {
    near.observe(card);
    here.observe(card);
  }
}

playAll.addEventListener("click", () => {
  const plays = !isPlayingAll();
  playAll.setAttribute("aria-pressed", String(plays));
  playAll.textContent = plays ? "Pause" : "Play in view";
  for (const card of inView) plays ? playerOf(card).play() : playerOf(card).pause();
});

/* Sorting and finding change the order of cards and rows, or hide them. */
const rows = list("#table tbody tr");
const select = find("#sort");
const order = find("#order");
let downwards = false;

function sort(key, down) {
  downwards = down;
  select.value = key;
  const values = numbers[key];
  const sign = down ? -1 : 1;
  const value = (element) => {
    const one = values[element.dataset.card];
    return one === null ? null : Number(one); // "Infinity" is what equal videos have
  };
  const place = (element) => Number(element.dataset.card);
  const compare = (first, second) => {
    if (!values) return sign * (place(first) - place(second));
    const [one, other] = [value(first), value(second)];
    if (one === null || other === null) return (one === null) - (other === null); // what is missing comes last
    return one === other ? place(first) - place(second) : one < other ? -sign : sign;
  };
  find("#clips").append(...cards.sort(compare));
  find("#table tbody")?.append(...rows.sort(compare));
  const name = select.selectedOptions[0].textContent;
  for (const card of cards) {
    const one = values?.[card.dataset.card] ?? null;
    find(".sorted", card).textContent = one === null ? "" : `${name}: ${one === "Infinity" ? "equal" : round(one)}`;
  }
  for (const button of list("#table thead button")) {
    const cell = button.parentElement;
    if (button.dataset.sort === key) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  order.firstElementChild.textContent = down ? "↓" : "↑";
  order.setAttribute("aria-label", down ? "Sort upwards" : "Sort downwards");
}

const round = (number) => number.toLocaleString("en", { maximumSignificantDigits: 5 });

select.addEventListener("change", () => sort(select.value, downwards));
order.addEventListener("click", () => sort(select.value, !downwards));
for (const button of list("#table thead button")) {
  button.addEventListener("click", () => {
    sort(button.dataset.sort, select.value === button.dataset.sort && !downwards);
  });
}

find("#find").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  const hidden = new Set();
  for (const card of cards) {
    card.hidden = !words.every((word) => card.dataset.text.includes(word));
    if (card.hidden) hidden.add(card.dataset.card);
  }
  for (const row of rows) row.hidden = hidden.has(row.dataset.card);
  find("#none").hidden = hidden.size < cards.length || !cards.length;
});

/* Keys work on the card that has the focus, or else on the first one in view. */
function current() {
  const focused = document.activeElement?.closest(".card");
  return focused ?? cards.find((card) => !card.hidden && card.getBoundingClientRect().bottom > 120);
}

function go(step) {
  const shown = cards.filter((card) => !card.hidden);
  const focused = document.activeElement?.closest(".card");
  const next = shown[focused ? shown.indexOf(focused) + step : shown.indexOf(current())];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "start" });
}

const keys = {
  " ": (player) => player.toggle(),
  ArrowLeft: (player) => player.show(player.frame - 1),
  ArrowRight: (player) => player.show(player.frame + 1),
  s: (player) => player.divide(Number(player.split.value) ? 0 : 50),
  j: () => go(1),
  k: () => go(-1),
  "/": () => find("#find").focus(),
};

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || !(key in keys)) return;
  if (target.matches("select, input:not([type=range])")) return;
  if (key === " " && target.matches("button, summary, a")) return;
  if (key.startsWith("Arrow") && (target.matches("input") || !target.closest(".card"))) return;
  const card = current();
  if (!card) return;
  event.preventDefault();
  keys[key](playerOf(card));
});

/* Light and dark: what the system has, until one is chosen. */
const root = document.documentElement;
const kept = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
  set: (theme) => { try { localStorage.setItem("theme", theme); } catch { /* a page of a file may keep nothing */ } } };
if (kept.get()) root.dataset.theme = kept.get();
find("#theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  kept.set(root.dataset.theme);
});

watch();
