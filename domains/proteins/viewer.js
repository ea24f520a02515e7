(() => {
  "use strict";
  const root = document.currentScript.parentElement;
  const scenes = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const canvas = root.querySelector("canvas"), ctx = canvas.getContext("2d");
  const pick = root.querySelector('[data-pick="chain"]');
  const paint = root.querySelector('[data-pick="colour"]');
  const note = root.querySelector(".viewer-note");
  const STATES = {H: [214, 69, 60], E: [47, 111, 214], C: [140, 146, 156]};
  const WIDTH = {H: 1.9, E: 1.6, C: 0.8};
  const STEPS = 6;
  const TILT = multiply(turn(0, 0.35), turn(1, -0.3));
  let scene = scenes[0], curve = [], rotation = TILT, zoom = 1;

  function turn(axis, angle) {
    const c = Math.cos(angle), s = Math.sin(angle);
    return axis === 0 ? [[1, 0, 0], [0, c, -s], [0, s, c]] : [[c, 0, s], [0, 1, 0], [-s, 0, c]];
  }
  function multiply(a, b) {
    return a.map(r => [0, 1, 2].map(j => r[0] * b[0][j] + r[1] * b[1][j] + r[2] * b[2][j]));
  }
  const mix = (a, b, t) => a.map((v, k) => v + (b[k] - v) * t);
  const rgb = (c, shade) => `rgb(${c.map(v => Math.max(0, Math.min(255, v * shade | 0))).join()})`;

  function colour(i) {
    const n = scene.x.length;
    if (paint.value === "place") {
      const t = n > 1 ? i / (n - 1) : 0;
      return t < 0.5 ? mix([40, 90, 220], [60, 180, 90], 2 * t)
        : mix([60, 180, 90], [225, 70, 50], 2 * t - 1);
    }
    if (paint.value === "confidence" && scene.confidence) {
      const top = Math.max(1, ...scene.confidence);
      return mix([235, 120, 40], [40, 90, 220], scene.confidence[i] / top);
    }
    if (paint.value === "given" && scene.given)
      return scene.given[i] ? [226, 150, 20] : STATES.C;
    return STATES[scene.state[i]] || STATES.C;
  }

  // Catmull-Rom through the CA atoms; a strand's zigzag is smoothed first.
  function bend() {
    curve = [];
    for (const rows of scene.pieces) {
      const x = rows.map((i, k) => {
        const p = scene.x[i];
        if (scene.state[i] !== "E" || k === 0 || k === rows.length - 1) return p;
        const a = scene.x[rows[k - 1]], b = scene.x[rows[k + 1]];
        return p.map((v, d) => (a[d] + 2 * v + b[d]) / 4);
      });
      const at = k => x[Math.max(0, Math.min(x.length - 1, k))];
      let last = null;
      for (let k = 0; k < x.length - 1; k++) {
        for (let s = k ? 1 : 0; s <= STEPS; s++) {
          const t = s / STEPS, [p, q, r, e] = [at(k - 1), at(k), at(k + 1), at(k + 2)];
          const point = q.map((v, d) => 0.5 * (2 * v + (r[d] - p[d]) * t
            + (2 * p[d] - 5 * v + 4 * r[d] - e[d]) * t * t
            + (3 * v - p[d] - 3 * r[d] + e[d]) * t * t * t));
          if (last) curve.push([last, point, rows[t < 0.5 ? k : k + 1]]);
          last = point;
        }
      }
    }
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const w = canvas.clientWidth, h = canvas.clientHeight;
    if (!w || !h) return;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, w, h);
    const reach = Math.max(4, ...scene.x.map(p => Math.hypot(...p))) + 1.5;
    const scale = zoom * Math.min(w, h) / 2 / reach, eye = 5 * reach;
    const see = p => {
      const q = rotation.map(r => r[0] * p[0] + r[1] * p[1] + r[2] * p[2]);
      const near = eye / (eye - q[2]);
      return [w / 2 + q[0] * scale * near, h / 2 - q[1] * scale * near, q[2], scale * near];
    };
    const things = curve.map(([a, b, i]) => {
      const p = see(a), q = see(b);
      return {z: (p[2] + q[2]) / 2, p, q, i};
    }).sort((a, b) => a.z - b.z);
    ctx.lineCap = "round";
    things.forEach(({z, p, q, i}) => {
      // Far things are paler, so that depth can be seen when nothing moves.
      ctx.globalAlpha = 0.35 + 0.65 * Math.min(1, Math.max(0, (z + reach) / (1.5 * reach)));
      const width = (WIDTH[scene.state[i]] || WIDTH.C) * p[3];
      for (const [thick, shade] of [[width, 0.62], [width * 0.72, 0.95], [width * 0.28, 1.25]]) {
        ctx.strokeStyle = rgb(colour(i), shade);
        ctx.lineWidth = thick;
        ctx.beginPath();
        ctx.moveTo(p[0], p[1]);
        ctx.lineTo(q[0], q[1]);
        ctx.stroke();
      }
    });
    ctx.globalAlpha = 1;
  }

  function show(i) {
    const k = (i + scenes.length) % scenes.length;
    scene = scenes[k];
    rotation = TILT;
    zoom = 1;
    pick.value = String(k);
    note.textContent = scene.note;
    bend();
    draw();
  }
  function rotate(dx, dy) {
    rotation = multiply(multiply(turn(1, dx), turn(0, dy)), rotation);
    draw();
  }
  function nearer(factor) {
    zoom = Math.min(6, Math.max(0.4, zoom * factor));
    draw();
  }
  pick.addEventListener("change", () => show(Number(pick.value)));
  paint.addEventListener("change", draw);
  root.querySelectorAll("button[data-step]").forEach(button => button.addEventListener("click",
    () => show(Number(pick.value) + Number(button.dataset.step))));
  canvas.addEventListener("pointerdown", e => canvas.setPointerCapture(e.pointerId));
  canvas.addEventListener("pointermove", e => {
    if (e.buttons & 1) rotate(e.movementX * 0.011, e.movementY * 0.011);
  });
  canvas.addEventListener("wheel", e => {
    e.preventDefault();
    nearer(Math.exp(-e.deltaY * 0.0015));
  }, {passive: false});
  canvas.addEventListener("dblclick", () => show(Number(pick.value)));
  canvas.addEventListener("keydown", e => {
    const step = {ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15],
      ArrowDown: [0, 0.15]}[e.key];
    if (step) rotate(...step);
    else if (e.key === "+" || e.key === "=") nearer(1.15);
    else if (e.key === "-") nearer(1 / 1.15);
    else return;
    e.preventDefault();
  });
  document.addEventListener("sciflow:show", e => {
    const k = scenes.findIndex(s => s.at === e.detail);
    if (k >= 0) show(k);
  });
  new ResizeObserver(draw).observe(canvas);
  window.addEventListener("beforeprint", draw);
  show(0);
})();
