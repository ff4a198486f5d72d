/* Token view: every token of a text on a background of its expert's colour.
 *
 * Tokens are untrusted: every node is made with createElement and filled with textContent. One span per token, one
 * listener per event (delegated), typed arrays for the numbers. Changing layer or mode repaints; it never asks Python.
 */

const views = new WeakMap();
const MODES = {
  first: "First expert",
  second: "Second expert",
  entropy: "Router entropy",
  surprise: "Surprise",
  change: "Change of loss",
  domain: "Domain",
};
const [LINE, NAME, REACH, GOES_ON, LAST] = [2, 3, 4, 5, 6]; // fields of a piece, see Piece in token_view.py
const SURPRISE_NATS = 8; // from here on a token is painted as strongly as can be
const MOST_CHIPS = 16;
const SEND_AFTER_MS = 250; // holding an arrow key must not flood the server

export default function (component) {
  const { data, parentElement, setStateValue, setTriggerValue } = component;
  let view = views.get(parentElement);
  if (!view) {
    view = new TokenView(parentElement);
    views.set(parentElement, view);
  }
  view.sendPicked = (picked) => setStateValue("picked", picked);
  view.sendLayer = (layer) => setTriggerValue("layer", layer);
  view.sendExpert = (layer, expert) => setTriggerValue("expert", { layer, expert });
  view.update(data);
  return () => {
    view.destroy();
    views.delete(parentElement);
  };
}

class TokenView {
  constructor(root) {
    const find = (selector) => root.querySelector(selector);
    this.root = find(".view");
    this.bar = find(".bar");
    this.modes = find(".modes");
    this.scrub = find(".scrub");
    this.slider = find(".scrub input");
    this.layerName = find(".scrub output");
    this.numbers = find(".numbers input");
    this.legend = find(".legend");
    this.text = find(".text");
    this.tip = find(".tip");
    this.path = find(".path");
    this.spans = [];
    this.appended = []; // the piece that each span shows
    this.data = null;
    this.mode = "first";
    this.modeChosen = false;
    this.at = 0; // place of the layer on the L axis
    this.selected = -1;
    this.focus = -1; // expert whose tokens stand out
    this.timer = 0;
    this.steps = new TokenSteps(this, root); // token_steps.js
    this.listen();
  }

  destroy() {
    clearTimeout(this.timer);
  }

  // ---- data -------------------------------------------------------------------------------------------------------

  update(data) {
    const old = this.data;
    const drawn = (of) => [of.id, of.layer, of.selected, JSON.stringify(of.names)].join();
    if (old && drawn(old) === drawn(data)) return;
    const same = old && old.series === data.series;
    if (!old || old.id !== data.id) this.read(data);
    if (!old || old.layer !== data.layer || old.layers.join() !== data.layers.join()) {
      this.at = Math.max(0, data.layers.indexOf(data.layer));
    }
    this.data = data;
    if (!same) {
      // What the reader chose stays for the next text; until then, what this text is best seen by.
      if (!this.modeChosen) this.mode = data.mode;
      this.selected = -1;
      this.focus = -1;
      this.numbers.checked = data.experts > data.expert_colours.length;
      this.text.replaceChildren();
      this.spans = [];
      this.appended = [];
      this.text.scrollTop = 0;
    }
    this.drawControls();
    this.appendTokens();
    this.steps.begin(!same);
    this.paint();
    const asked = data.selected !== null && (!same || old.selected !== data.selected);
    if (asked && data.selected !== this.selected) this.select(data.selected);
    else this.drawPath();
    if (same && data.live && this.text.scrollHeight > this.text.clientHeight) {
      this.text.scrollTop = this.text.scrollHeight;
    }
  }

  read(data) {
    const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
    this.tokens = new Int32Array(bytes(data.tokens)); // [T] index into pieces
    this.indices = new Int16Array(bytes(data.indices)); // [L,T,K] experts, largest weight first, -1 = unused
    this.weights = new Uint16Array(bytes(data.weights)); // [L,T,K] of weight_scale
    this.entropy = data.entropy === null ? null : new Uint8Array(bytes(data.entropy)); // [L,T] of 255
    this.losses = data.losses === null ? null : new Float32Array(bytes(data.losses)); // [T] nats
    this.ranks = data.ranks === null ? null : new Int32Array(bytes(data.ranks)); // [T] 0 = not predicted
    this.changes = data.changes === null ? null : new Float32Array(bytes(data.changes)); // [T] nats
    this.marks = data.marks === null ? null : new Uint8Array(bytes(data.marks)); // [L,T] 1 = marked
    this.domains = new Int16Array(bytes(data.domain_ids)); // [T]
    this.count = this.tokens.length;
    this.signatures = null;
  }

  expert(at, token, slot) {
    return this.indices[(at * this.count + token) * this.data.top_k + slot];
  }

  weight(at, token, slot) {
    return (this.weights[(at * this.count + token) * this.data.top_k + slot] / 65535) * this.data.weight_scale;
  }

  /* The slot in which a token chose the expert, 0 = the largest weight; -1 where it did not. */
  slotOf(at, token, expert) {
    const first = (at * this.count + token) * this.data.top_k;
    for (let slot = 0; slot < this.data.top_k; slot++) if (this.indices[first + slot] === expert) return slot;
    return -1;
  }

  /* The name that somebody gave the expert, or "". */
  nameOf(at, expert) {
    const names = this.data.names[this.data.layers[at]];
    return (names && names[expert]) || "";
  }

  /* "3", or "3 \u00b7 currency amounts". */
  label(at, expert) {
    const name = this.nameOf(at, expert);
    return name ? `${expert} \u00b7 ${name}` : String(expert);
  }

  expertColour(expert) {
    return this.data.expert_colours[expert % this.data.expert_colours.length];
  }

  // ---- controls ---------------------------------------------------------------------------------------------------

  available() {
    const data = this.data;
    return Object.keys(MODES).filter(
      (mode) =>
        mode === "first" ||
        (mode === "second" && data.top_k > 1) ||
        (mode === "entropy" && this.entropy) ||
        (mode === "surprise" && this.losses) ||
        (mode === "change" && this.changes) ||
        (mode === "domain" && data.domains.length > 1)
    );
  }

  drawControls() {
    const modes = this.available();
    if (!modes.includes(this.mode)) this.mode = "first";
    this.modes.replaceChildren(
      ...modes.map((mode) => {
        const button = element("button", "mode", MODES[mode]);
        button.type = "button";
        button.dataset.mode = mode;
        button.setAttribute("role", "radio");
        button.setAttribute("aria-checked", String(mode === this.mode));
        button.tabIndex = mode === this.mode ? 0 : -1;
        return button;
      })
    );
    this.scrub.hidden = this.data.layers.length < 2;
    this.slider.max = String(this.data.layers.length - 1);
    this.slider.value = String(this.at);
    this.nameLayer();
  }

  nameLayer() {
    const name = String(this.data.layers[this.at]);
    this.layerName.textContent = name;
    this.slider.setAttribute("aria-valuetext", `layer ${name}`);
  }

  setMode(mode, focusButton) {
    this.mode = mode;
    this.modeChosen = true;
    this.focus = -1;
    for (const button of this.modes.children) {
      const on = button.dataset.mode === mode;
      button.setAttribute("aria-checked", String(on));
      button.tabIndex = on ? 0 : -1;
      if (on && focusButton) button.focus();
    }
    this.paint();
  }

  setLayer(at) {
    if (at === this.at || at < 0 || at >= this.data.layers.length) return;
    this.at = at;
    this.slider.value = String(at);
    this.nameLayer();
    this.steps.follow();
    this.paint();
    this.drawPath();
  }

  // ---- text -------------------------------------------------------------------------------------------------------

  appendTokens() {
    const { pieces, starts, domains, headings } = this.data;
    const fragment = document.createDocumentFragment();
    const begins = new Set(starts);
    this.dropWhatNowReadsOtherwise();
    let together = null; // the tokens that share a character with their neighbours stand in one element
    for (let i = this.spans.length; i < this.count; i++) {
      if (headings && begins.has(i)) {
        const heading = element("div", "heading", domains[this.domains[i]]);
        fragment.append(heading);
      }
      const piece = pieces[this.tokens[i]];
      const span = tokenSpan(piece);
      span.id = `t${i}`;
      span.dataset.i = String(i);
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      this.spans.push(span);
      this.appended.push(String(piece));
      if (!piece[GOES_ON]) together = piece[REACH] ? element("span", "together") : null;
      if (together) together.append(span);
      if (!together || !piece[GOES_ON]) fragment.append(together || span);
    }
    this.text.append(fragment);
  }

  /* While a text is written, the last token's bytes may turn out to be the beginning of a character. */
  dropWhatNowReadsOtherwise() {
    const { pieces } = this.data;
    let keep = this.spans.findIndex((_, i) => this.appended[i] !== String(pieces[this.tokens[i]]));
    if (keep < 0) return;
    while (keep > 0 && pieces[this.tokens[keep]][GOES_ON]) keep -= 1;
    for (const span of this.spans.splice(keep)) {
      const together = span.closest(".together");
      span.remove();
      if (together && !together.childElementCount) together.remove();
    }
    this.appended.length = keep;
  }

  paint() {
    const { mode, at, data } = this;
    const slot = mode === "second" ? 1 : 0;
    const byExpert = mode === "first" || mode === "second";
    for (let i = 0; i < this.count; i++) {
      let colour = data.heat_colour;
      let strength = 0;
      let label = "";
      if (byExpert) {
        // Of one expert alone, all tokens that chose it, be it their first or last choice.
        const shown = this.focus >= 0 ? this.slotOf(at, i, this.focus) : slot;
        const expert = this.expert(at, i, slot);
        if (shown >= 0 && this.expert(at, i, shown) >= 0) {
          colour = this.expertColour(this.expert(at, i, shown));
          // A second expert has at most half the weight: twice as strong, so that both modes use the whole range.
          strength = Math.min(1, this.weight(at, i, shown) * (shown + 1)) * 0.85 + 0.15;
        }
        label = expert < 0 ? "–" : String(expert);
      } else if (mode === "entropy") strength = this.entropy[at * this.count + i] / 255;
      else if (mode === "surprise") strength = Math.min(1, (this.losses[i] || 0) / SURPRISE_NATS);
      else if (mode === "change") {
        const change = this.changes[i] || 0;
        colour = data.change_colours[change < 0 ? 0 : 1];
        strength = Math.min(1, Math.abs(change) / data.change_limit);
      }
      else {
        colour = data.domain_colours[this.domains[i] % data.domain_colours.length];
        strength = 0.7;
      }
      const span = this.spans[i];
      span.style.backgroundColor = strength > 0 ? rgba(colour, strength * data.strength) : "transparent";
      if (span.dataset.e !== label) span.dataset.e = label;
      span.classList.toggle("marked", this.isMarked(i));
      const name = this.accessibleName(i);
      if (span.getAttribute("aria-label") !== name) span.setAttribute("aria-label", name);
    }
    this.text.classList.toggle("numbered", byExpert && this.numbers.checked);
    this.drawLegend(byExpert);
  }

  /* What a screen reader says of a token: its text in words, its expert, and what else its colour shows. */
  accessibleName(i) {
    const { mode, at, data } = this;
    const expert = this.expert(at, i, 0);
    const parts = [data.pieces[this.tokens[i]][NAME], expert < 0 ? "no expert" : `expert ${this.label(at, expert)}`];
    if (mode === "second") {
      const second = this.expert(at, i, 1);
      parts.push(second < 0 ? "no second expert" : `second expert ${this.label(at, second)}`);
    } else if (mode === "entropy") parts.push(`router entropy ${percent(this.entropy[at * this.count + i] / 255)}`);
    else if (mode === "surprise" && this.losses[i] === this.losses[i]) {
      parts.push(`surprise ${this.losses[i].toFixed(2)} nats`);
    } else if (mode === "change" && this.changeText(i)) parts.push(this.changeText(i));
    else if (mode === "domain") parts.push(data.domains[this.domains[i]]);
    if (this.isMarked(i)) parts.push(data.mark_label);
    return parts.join(", ");
  }

  /* How many tokens chose each expert of the layer, with any of their choices and with the first. */
  countChoices() {
    const any = new Array(this.data.experts).fill(0);
    const first = new Array(this.data.experts).fill(0);
    const { top_k: top } = this.data;
    for (let i = 0; i < this.count; i++) {
      for (let slot = 0; slot < top; slot++) {
        const expert = this.expert(this.at, i, slot);
        if (expert < 0) continue;
        any[expert] += 1;
        if (slot === 0) first[expert] += 1;
      }
    }
    return { any, first };
  }

  drawExperts() {
    const { data, at } = this;
    const { any, first } = this.countChoices();
    const every = data.experts <= MOST_CHIPS;
    const experts = any.map((_, expert) => expert);
    if (!every) {
      experts.sort((a, b) => any[b] - any[a]).splice(MOST_CHIPS);
      if (this.focus >= 0 && !experts.includes(this.focus)) experts.push(this.focus);
    }
    const of = data.top_k > 1 ? `share of all choices, ${data.top_k} a token` : "share of the tokens";
    const parts = [element("span", "hint", `${every ? "Expert" : `${MOST_CHIPS} busiest of ${data.experts} experts`}, ${of}`)];
    const shares = partsOfAll(any); // of all experts, as the sentence above the text says them
    for (const expert of experts) {
      const chip = element("button", "chip");
      chip.type = "button";
      chip.dataset.expert = String(expert);
      chip.setAttribute("aria-pressed", String(expert === this.focus));
      const asFirst = data.top_k > 1 ? `, ${first[expert]} as their first` : "";
      const chose = `${any[expert]} of ${this.count} tokens chose it${asFirst}`;
      chip.title = `Expert ${this.label(at, expert)}: ${chose}. Click to show only these.`;
      const swatch = element("span", "swatch");
      swatch.style.backgroundColor = this.expertColour(expert);
      chip.append(swatch, element("b", "", String(expert)));
      if (this.nameOf(at, expert)) chip.append(element("span", "name", this.nameOf(at, expert)));
      chip.append(element("span", "share", shares[expert]));
      parts.push(chip);
    }
    const others = any.reduce((sum, count, expert) => sum + (experts.includes(expert) ? 0 : count), 0);
    if (others > 0) {
      const said = experts.reduce((sum, expert) => sum + (parseFloat(shares[expert]) || 0), 0);
      const digits = shares.some((share) => share.includes(".")) ? 1 : 0;
      parts.push(element("span", "hint", `others ${(100 - said).toFixed(digits)} %`));
    }
    return parts;
  }

  drawLegend(byExpert) {
    const { data, mode } = this;
    const parts = byExpert ? this.drawExperts() : [];
    if (mode === "domain") {
      parts.push(element("span", "hint", "Domain of the text"));
      data.domains.forEach((name, i) => {
        const chip = element("span", "chip still");
        const swatch = element("span", "swatch");
        swatch.style.backgroundColor = data.domain_colours[i % data.domain_colours.length];
        chip.append(swatch, element("span", "", name));
        parts.push(chip);
      });
    } else if (mode === "change") {
      const [below, above] = data.change_colours.map((colour) => rgba(colour, data.strength));
      const limit = data.change_limit;
      const ramp = element("span", "ramp");
      ramp.style.backgroundImage = `linear-gradient(to right, ${below}, transparent, ${above})`;
      const low = element("span", "hint", `foreseen better, \u2212${limit} nats`);
      parts.push(low, ramp, element("span", "hint", `+${limit} nats, foreseen worse`));
    } else if (!byExpert) {
      const [low, high] =
        mode === "entropy" ? ["sure of one expert", "all experts alike"] : ["foreseen", `${SURPRISE_NATS} nats or more`];
      const ramp = element("span", "ramp");
      ramp.style.backgroundImage = `linear-gradient(to right, transparent, ${rgba(data.heat_colour, data.strength)})`;
      parts.push(element("span", "hint", low), ramp, element("span", "hint", high));
    }
    if (this.marks && data.mark_label) {
      parts.push(element("span", "marked sample", "dotted"), element("span", "hint", data.mark_label));
    }
    this.legend.replaceChildren(...parts);
  }

  // ---- one token --------------------------------------------------------------------------------------------------

  /* `keepsExpert`: whether the steps stay with their expert, as they led here. */
  select(i, keepsExpert = false) {
    if (i < 0 || i >= this.count) return;
    this.mark(this.selected, false);
    this.selected = i;
    this.mark(i, true);
    this.text.setAttribute("aria-activedescendant", `t${i}`);
    this.reveal(i);
    if (!keepsExpert) this.steps.follow();
    this.steps.draw();
    this.drawPath();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(i), SEND_AFTER_MS);
  }

  send(i) {
    this.sendPicked({ series: this.data.series, token: i });
    if (this.data.link_from === null) return;
    // As Streamlit does for its own widgets: the URL follows the choice, without one more step of the browser's Back.
    const url = new URL(window.location.href);
    url.searchParams.set("token", String(this.data.link_from + i));
    window.history.replaceState({}, "", url);
  }

  /* Scroll the text, and nothing else, so that the token is seen. */
  reveal(i) {
    const [span, box] = [this.spans[i], this.text];
    const middle = span.offsetTop;
    if (middle < box.scrollTop || middle + span.offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = middle - box.clientHeight / 2;
    }
  }

  mark(i, on) {
    if (i < 0 || !this.spans[i]) return;
    this.spans[i].classList.toggle("selected", on);
    this.spans[i].setAttribute("aria-selected", String(on));
  }

  signature(i) {
    if (!this.signatures) {
      this.signatures = [];
      for (let t = 0; t < this.count; t++) {
        let way = "";
        for (let at = 0; at < this.data.layers.length; at++) way += `${this.expert(at, t, 0)},`;
        this.signatures.push(way);
      }
    }
    return this.signatures[i];
  }

  drawPath() {
    for (const span of this.text.querySelectorAll(".same")) span.classList.remove("same");
    if (this.selected < 0 || this.selected >= this.count) {
      const hint = "Click a token, or press Tab and the arrow keys, to see its path through all layers.";
      this.path.replaceChildren(element("p", "hint", hint));
      return;
    }
    const i = this.selected;
    this.mark(i, true);
    const parts = [this.describe(i)];
    const table = element("div", "layers");
    this.data.layers.forEach((layer, at) => {
      const column = element("button", at === this.at ? "layer now" : "layer");
      column.type = "button";
      column.dataset.at = String(at);
      column.title = `Colour the text by layer ${layer}`;
      column.append(element("span", "hint", `layer ${layer}`));
      for (let slot = 0; slot < this.data.top_k; slot++) column.append(this.row(at, i, slot));
      table.append(column);
    });
    parts.push(this.drawLinks(i), table, this.drawSame(i));
    this.path.replaceChildren(...parts);
    const now = table.children[this.at];
    table.scrollLeft = now.offsetLeft - (table.clientWidth - now.offsetWidth) / 2;
  }

  describe(i) {
    const line = element("p", "token");
    line.append(element("span", "hint", `Token ${i} `), element("code", "", this.pieceText(i)));
    if (this.losses && this.losses[i] === this.losses[i]) {
      line.append(element("span", "", ` surprise ${this.losses[i].toFixed(2)} nats`));
    }
    if (this.changeText(i)) line.append(element("span", "", `, ${this.changeText(i)} by the change`));
    if (this.isMarked(i)) line.append(element("span", "", `, ${this.data.mark_label}`));
    if (this.ranks && this.ranks[i] > 0) {
      line.append(element("span", "", `, the model's guess no. ${this.ranks[i].toLocaleString("en")}`));
    }
    if (this.entropy) {
      const share = percent(this.entropy[this.at * this.count + i] / 255);
      line.append(element("span", "", `, router entropy ${share} in layer ${this.data.layers[this.at]}`));
    }
    return line;
  }

  /* A way to each of the token's experts in this layer. */
  drawLinks(i) {
    const line = element("p", "links");
    const layer = this.data.layers[this.at];
    for (let slot = 0; slot < this.data.top_k; slot++) {
      const expert = this.expert(this.at, i, slot);
      if (expert < 0) continue;
      const link = element("button", "link", slot ? this.label(this.at, expert) : `Go to expert ${this.label(this.at, expert)}`);
      link.type = "button";
      link.setAttribute("role", "link");
      link.setAttribute("aria-label", `Go to expert ${this.label(this.at, expert)} of layer ${layer}`);
      link.dataset.expert = String(expert);
      line.append(slot ? " or " : "", link);
    }
    if (line.childElementCount) line.append(` of layer ${layer}`);
    return line;
  }

  /* Whether the token has any expert at all: one of a prompt has none in a text that was written. */
  isRouted(i) {
    const { layers, top_k, starts } = this.data;
    return starts.length > 0 || layers.some((_, at) => [...Array(top_k).keys()].some((k) => this.expert(at, i, k) >= 0));
  }

  row(at, i, slot) {
    const row = element("span", "slot");
    const expert = this.expert(at, i, slot);
    if (expert < 0) {
      row.append(element("span", "hint", this.isRouted(i) ? "unused" : "not written by the model"));
      return row;
    }
    const weight = this.weight(at, i, slot);
    const swatch = element("span", "swatch");
    swatch.style.backgroundColor = this.expertColour(expert);
    const meter = element("span", "meter");
    const fill = element("span", "fill");
    fill.style.width = `${Math.min(100, 100 * weight)}%`;
    fill.style.backgroundColor = this.expertColour(expert);
    meter.append(fill);
    row.append(swatch, element("b", "", String(expert)));
    const name = this.nameOf(at, expert);
    if (name) {
      row.title = this.label(at, expert);
      row.append(element("span", "name", name));
    }
    row.append(meter, element("span", "share", weight.toFixed(2)));
    return row;
  }

  isMarked(i) {
    return this.marks !== null && this.marks[this.at * this.count + i] === 1;
  }

  changeText(i) {
    const change = this.changes ? this.changes[i] : NaN;
    return change === change ? `loss ${signed(change)} nats` : "";
  }

  drawSame(i) {
    const way = this.signature(i);
    const names = new Map();
    let others = 0;
    for (let t = 0; t < this.count; t++) {
      if (t === i || this.signature(t) !== way) continue;
      others += 1;
      this.spans[t].classList.add("same");
      const name = this.pieceText(t);
      names.set(name, (names.get(name) || 0) + 1);
    }
    const line = element("p", "same-line");
    if (others === 0) {
      line.textContent = "No other token here takes the same first experts through all layers.";
      return line;
    }
    const tokens = others === 1 ? "1 other token takes" : `${others} other tokens take`;
    line.append(`${tokens} the same first experts through all layers (underlined): `);
    const most = [...names].sort((a, b) => b[1] - a[1]).slice(0, 12);
    for (const [name, times] of most) {
      line.append(element("code", "", name), times > 1 ? `×${times} ` : " ");
    }
    if (names.size > most.length) line.append(`and ${names.size - most.length} more`);
    return line;
  }

  pieceText(i) {
    return this.data.pieces[this.tokens[i]][LINE];
  }

  showTip(i) {
    const span = this.spans[i];
    const head = element("div", "tip-head");
    head.append(element("code", "", this.pieceText(i)), element("span", "hint", ` token ${i}`));
    const parts = [head, element("div", "hint", `layer ${this.data.layers[this.at]}`)];
    for (let slot = 0; slot < this.data.top_k; slot++) parts.push(this.row(this.at, i, slot));
    const facts = [];
    if (this.entropy) facts.push(`router entropy ${percent(this.entropy[this.at * this.count + i] / 255)}`);
    if (this.losses && this.losses[i] === this.losses[i]) facts.push(`surprise ${this.losses[i].toFixed(2)} nats`);
    if (this.changeText(i)) facts.push(`${this.changeText(i)} by the change`);
    if (this.isMarked(i)) facts.push(this.data.mark_label);
    if (this.ranks && this.ranks[i] > 0) facts.push(`guess no. ${this.ranks[i].toLocaleString("en")}`);
    for (const fact of facts) parts.push(element("div", "", fact));
    this.tip.replaceChildren(...parts);
    this.tip.hidden = false;
    // A token that is broken over two lines has several boxes: the first is where it begins.
    const box = span.getClientRects()[0] || span.getBoundingClientRect();
    const frame = this.root.getBoundingClientRect();
    const left = Math.min(Math.max(0, box.left - frame.left), Math.max(0, frame.width - this.tip.offsetWidth));
    const above = box.top - frame.top - this.tip.offsetHeight - 6;
    const room = box.top - this.tip.offsetHeight - 6 > 60; // below Streamlit's header
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${room ? above : box.bottom - frame.top + 6}px`;
  }

  // ---- events -----------------------------------------------------------------------------------------------------

  listen() {
    const tokenOf = (event) => {
      const span = event.target.closest && event.target.closest(".t");
      return span ? Number(span.dataset.i) : -1;
    };
    this.text.addEventListener("mouseover", (event) => {
      const i = tokenOf(event);
      if (i >= 0) this.showTip(i);
    });
    this.text.addEventListener("mouseleave", () => (this.tip.hidden = true));
    this.text.addEventListener("scroll", () => (this.tip.hidden = true));
    this.text.addEventListener("click", (event) => {
      const i = tokenOf(event);
      if (i >= 0) this.select(i);
    });
    this.text.addEventListener("keydown", (event) => this.onKey(event));
    this.slider.addEventListener("input", () => this.setLayer(Number(this.slider.value)));
    this.slider.addEventListener("change", () => this.sendLayer(this.data.layers[this.at]));
    this.numbers.addEventListener("change", () => this.paint());
    this.modes.addEventListener("click", (event) => {
      const button = event.target.closest(".mode");
      if (button) this.setMode(button.dataset.mode, false);
    });
    this.modes.addEventListener("keydown", (event) => this.onModeKey(event));
    this.legend.addEventListener("click", (event) => {
      const chip = event.target.closest("button.chip");
      if (!chip) return;
      const expert = Number(chip.dataset.expert);
      this.focus = this.focus === expert ? -1 : expert;
      this.steps.wish(expert);
      this.paint();
      const again = this.legend.querySelector(`button[data-expert="${expert}"]`);
      if (again) again.focus();
    });
    this.path.addEventListener("click", (event) => {
      const link = event.target.closest("button.link");
      if (link) {
        clearTimeout(this.timer); // a selection sent now would interrupt the way to the expert
        this.sendExpert(this.data.layers[this.at], Number(link.dataset.expert));
      }
      const column = event.target.closest("button.layer");
      if (!column) return;
      this.setLayer(Number(column.dataset.at));
      this.sendLayer(this.data.layers[this.at]);
    });
  }

  onKey(event) {
    const from = this.selected;
    const last = this.count - 1;
    const targets = {
      ArrowRight: () => Math.min(from + 1, last),
      ArrowLeft: () => Math.max(from - 1, 0),
      ArrowDown: () => this.nextLine(1),
      ArrowUp: () => this.nextLine(-1),
      Home: () => 0,
      End: () => last,
    };
    if (this.steps.onKey(event)) return;
    if (!(event.key in targets) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.tip.hidden = true;
    this.select(targets[event.key]());
  }

  onModeKey(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const modes = this.available();
    this.setMode(modes[(modes.indexOf(this.mode) + step + modes.length) % modes.length], true);
  }

  nextLine(step) {
    if (this.selected < 0) return 0;
    const here = this.spans[this.selected];
    let best = this.selected;
    let line = null;
    for (let i = this.selected + step; i >= 0 && i < this.count; i += step) {
      const span = this.spans[i];
      if (Math.abs(span.offsetTop - here.offsetTop) < 4) continue;
      if (line === null) line = span.offsetTop;
      if (Math.abs(span.offsetTop - line) >= 4) break;
      const nearer = Math.abs(span.offsetLeft - here.offsetLeft) < Math.abs(this.spans[best].offsetLeft - here.offsetLeft);
      if (best === this.selected || nearer) best = i;
    }
    return best;
  }
}

/* A token's own text; a cell for each character that it shares, and in the first cell of a character the character. */
function tokenSpan(piece) {
  const span = element("span", piece[1] ? "t code" : "t");
  if (piece[GOES_ON]) span.append(element("span", "cell"));
  const [text, last] = [piece[0], piece[LAST]];
  const own = text.slice(0, text.length - last.length);
  if (own) span.append(own);
  if (piece[REACH]) {
    const cell = element("span", "cell");
    const shared = element("span", "shared", last);
    shared.style.setProperty("--reach", String(piece[REACH]));
    cell.append(shared);
    span.append(cell);
  }
  if (piece[REACH] || piece[GOES_ON]) span.classList.add("part");
  return span;
}

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function rgba(hex, alpha) {
  const value = parseInt(hex.slice(1), 16);
  return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, ${alpha.toFixed(3)})`;
}
