"use strict";
// Players for the recorded examples. Each draws one clip on a canvas, cell by cell, in whole device pixels.
(() => {
  const clips = JSON.parse(document.getElementById("data").textContent).clips;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const TALLEST = 520;
  const LARGEST = 30;
  const SMALLEST = 5;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const code = (character) => (ALPHABET.includes(character) ? ALPHABET.indexOf(character) : character.charCodeAt(0) - 0x100);
  const verdict = (correct) => (correct === null ? "unjudged" : correct ? "right" : "wrong");

  class Player {
    constructor(root, index) {
      this.root = root;
      this.part = (selector) => root.querySelector(selector);
      this.choice = this.part(".choice select");
      this.slider = this.part("input");
      this.button = this.part(".play");
      this.timer = null;
      this.choice.value = String(index);
      this.choice.addEventListener("change", () => this.load(Number(this.choice.value)));
      this.slider.addEventListener("input", () => { this.pause(); this.show(Number(this.slider.value)); });
      this.button.addEventListener("click", () => (this.timer === null ? this.play() : this.pause()));
      this.part(".speed select").addEventListener("change", () => { if (this.timer !== null) this.play(); });
      root.addEventListener("keydown", (event) => this.key(event));
      this.load(index);
    }

    load(index) {
      this.pause();
      this.clip = clips[index];
      const empty = this.clip.order.length === 0 || this.clip.columns === 0;
      this.part(".nothing").hidden = !empty;
      for (const selector of [".stage", ".status", ".strip", ".transport"]) this.part(selector).hidden = empty;
      this.slider.max = String(Math.max(this.clip.order.length - 1, 0));
      this.legend();
      this.frame = 0;
      arrange();
      if (!empty) this.show(0);
    }

    legend() {
      const list = this.part(".cells");
      list.replaceChildren(...this.clip.labels.map((label, place) => {
        const item = document.createElement("li");
        const chip = document.createElement("i");
        chip.className = "chip";
        // As a colour and not as a background: a background could name an address.
        chip.style.backgroundColor = this.clip.colours[place];
        item.append(chip, label);
        return item;
      }));
    }

    key(event) {
      if (event.target.tagName === "SELECT") return;
      const last = this.clip.order.length - 1;
      const jumps = { ArrowLeft: this.frame - 1, ArrowRight: this.frame + 1, Home: 0, End: last };
      if (event.key === " " && event.target !== this.button) {
        event.preventDefault();
        this.button.click();
      } else if (event.key in jumps) {
        event.preventDefault();
        this.pause();
        this.show(Math.min(Math.max(jumps[event.key], 0), last));
      }
    }

    play() {
      clearInterval(this.timer);
      if (this.frame >= this.clip.order.length - 1) this.show(0);
      this.timer = setInterval(() => this.advance(), 1000 / Number(this.part(".speed select").value));
      this.face("❚❚", "Pause");
    }

    pause() {
      clearInterval(this.timer);
      this.timer = null;
      this.face("▶", "Play");
    }

    face(sign, label) {
      this.button.textContent = sign;
      this.button.setAttribute("aria-label", label);
    }

    advance() {
      if (this.frame < this.clip.order.length - 1) this.show(this.frame + 1);
      if (this.frame >= this.clip.order.length - 1) this.pause();
    }

    show(frame) {
      this.frame = frame;
      const { clip } = this;
      const step = clip.steps[frame].toLocaleString("en");
      const cost = clip.cost === null ? "" : ` (cost ${(clip.steps[frame] * clip.cost).toLocaleString("en")})`;
      const answer = { right: "right", wrong: "wrong", unjudged: "not judged" }[verdict(clip.correct[frame])];
      this.part(".step").textContent = `step ${step}${cost}`;
      this.part(".answer").textContent = `answer ${answer}`;
      this.part(".answer").style.setProperty("--mark", `var(--${verdict(clip.correct[frame])})`);
      this.part(".residual").textContent = `residual ${clip.residuals[frame]}`;
      this.slider.value = String(frame);
      this.slider.setAttribute("aria-valuetext", `step ${step}, answer ${answer}, residual ${clip.residuals[frame]}`);
      this.part(".stage canvas").setAttribute("aria-label", `${clip.title}: after step ${step} the answer is ${answer}`);
      this.paint();
      this.strip();
    }

    paint() {
      const { clip } = this;
      const canvas = this.part(".stage canvas");
      const cells = [...clip.pictures[clip.order[this.frame]]].map(code);
      const rows = cells.length / clip.columns;
      const ratio = window.devicePixelRatio || 1;
      const room = Math.min(this.part(".stage").clientWidth / clip.columns, TALLEST / rows, LARGEST);
      // Whole device pixels keep the edges of cells sharp; a stage that is too narrow scrolls.
      const size = Math.max(Math.floor(room * ratio), Math.round(SMALLEST * ratio));
      const gap = size >= 8 * ratio ? Math.max(1, Math.round(ratio)) : 0;
      canvas.width = clip.columns * size - gap;
      canvas.height = rows * size - gap;
      canvas.style.width = `${canvas.width / ratio}px`;
      canvas.style.height = `${canvas.height / ratio}px`;
      const brush = canvas.getContext("2d");
      brush.fillStyle = css("--line");
      brush.fillRect(0, 0, canvas.width, canvas.height);
      cells.forEach((cell, place) => {
        brush.fillStyle = css("--unjudged");
        brush.fillStyle = clip.colours[cell] ?? brush.fillStyle;
        brush.fillRect((place % clip.columns) * size, Math.floor(place / clip.columns) * size, size - gap, size - gap);
      });
    }

    strip() {
      const canvas = this.part(".strip");
      const ratio = window.devicePixelRatio || 1;
      canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
      canvas.height = Math.round(8 * ratio);
      const brush = canvas.getContext("2d");
      const edge = (frame) => Math.round((frame * canvas.width) / this.clip.correct.length);
      this.clip.correct.forEach((correct, frame) => {
        brush.globalAlpha = frame <= this.frame ? 1 : 0.3;
        brush.fillStyle = css(`--${verdict(correct)}`);
        brush.fillRect(edge(frame), 0, edge(frame + 1) - edge(frame), canvas.height);
      });
    }
  }

  const players = [];
  // Wide pictures get a whole row each, or their cells would be too small to see.
  function arrange() {
    const wide = players.some(({ clip }) => clip.columns > 40 && clip.pictures.some((picture) => clip.columns ** 2 > 2 * picture.length));
    document.querySelector(".players").classList.toggle("wide", wide);
  }
  function repaint() {
    arrange();
    for (const player of players) if (player.clip.order.length && player.clip.columns) player.show(player.frame);
  }

  // One that is solved beside one that fails, if there are both.
  const solved = Math.max(clips.findIndex((clip) => clip.solved === true), 0);
  const failing = clips.findIndex((clip, index) => clip.solved === false && index !== solved);
  const second = failing >= 0 ? failing : clips.findIndex((_, index) => index !== solved);
  document.querySelectorAll(".player").forEach((root, place) => players.push(new Player(root, [solved, second][place])));
  if (players.length) {
    repaint();
    let waiting = null;
    window.addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(repaint); });
    dark.addEventListener("change", repaint);
  }
})();
