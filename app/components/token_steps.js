/* Steps through the tokens of a view: those of one expert, and those that a piece of text lies in.
 *
 * Both stay in the browser. What is looked for is compared with the text that a reader sees, over the borders of tokens.
 */

const APART = "\u0000"; // between two documents: no piece of text goes on in the next one

class TokenSteps {
  constructor(view, root) {
    this.view = view;
    const [ofExpert, ofText] = root.querySelectorAll(".step");
    this.number = ofExpert.querySelector("input");
    this.place = ofExpert.querySelector(".place");
    this.buttons = ofExpert.querySelectorAll("button");
    this.find = ofText.querySelector("input");
    this.found = ofText.querySelector(".place");
    this.findButtons = ofText.querySelectorAll("button");
    this.expert = -1; // whose tokens the steps go to
    this.tokens = []; // of that expert in the layer that is shown
    this.hits = []; // [first, last] token of each place where the text was found
    this.hit = -1;
    this.listen(ofExpert, ofText);
  }

  listen(ofExpert, ofText) {
    ofExpert.querySelector(".back").addEventListener("click", () => this.step(-1));
    ofExpert.querySelector(".on").addEventListener("click", () => this.step(1));
    this.number.addEventListener("input", () => this.typed());
    ofText.querySelector(".back").addEventListener("click", () => this.stepHit(-1));
    ofText.querySelector(".on").addEventListener("click", () => this.stepHit(1));
    this.find.addEventListener("input", () => this.search());
    for (const input of [this.number, this.find]) {
      input.addEventListener("keydown", (event) => {
        event.stopPropagation(); // single letters are commands of the page around
        const step = event.shiftKey ? -1 : 1;
        if (event.key === "Enter") input === this.find ? this.stepHit(step) : this.step(step);
        else if (event.key === "Escape" && input === this.find) {
          this.find.value = "";
          this.search();
        } else return;
        event.preventDefault();
      });
    }
  }

  /* Another text, or more of the same. */
  begin(isNew) {
    this.number.max = String(this.view.data.experts - 1);
    if (isNew) this.expert = -1;
    this.haystack = null;
    this.follow();
    if (this.find.value) this.search();
  }

  /* The expert of the selected token, unless one was chosen that the token went to as well. */
  follow() {
    const { view } = this;
    if (view.focus >= 0) this.expert = view.focus;
    else if (view.selected >= 0 && view.slotOf(view.at, view.selected, this.expert) < 0) {
      this.expert = view.expert(view.at, view.selected, 0);
    }
    this.collect();
  }

  wish(expert) {
    this.expert = expert;
    this.collect();
  }

  typed() {
    const expert = this.number.value === "" ? -1 : Number(this.number.value);
    const known = Number.isInteger(expert) && expert >= 0 && expert < this.view.data.experts;
    this.number.setAttribute("aria-invalid", String(!known && this.number.value !== ""));
    this.expert = known ? expert : -1;
    this.view.focus = this.expert;
    this.collect(false);
    this.view.paint();
  }

  collect(writes = true) {
    const { view } = this;
    this.tokens = [];
    for (let i = 0; this.expert >= 0 && i < view.count; i++) {
      if (view.slotOf(view.at, i, this.expert) >= 0) this.tokens.push(i);
    }
    if (writes) {
      this.number.value = this.expert < 0 ? "" : String(this.expert);
      this.number.setAttribute("aria-invalid", "false");
    }
    this.draw();
  }

  draw() {
    const { view } = this;
    for (const button of this.buttons) button.disabled = !this.tokens.length;
    const at = this.tokens.indexOf(view.selected);
    const many = this.tokens.length;
    const wrong = this.number.getAttribute("aria-invalid") === "true";
    if (wrong) this.place.textContent = `0 to ${view.data.experts - 1}`;
    else if (this.expert < 0) this.place.textContent = "click a token, or type a number";
    else if (!many) this.place.textContent = "no token here chose it";
    else this.place.textContent = at < 0 ? `${many} ${many === 1 ? "token" : "tokens"}` : `${at + 1} of ${many}`;
  }

  step(by) {
    const { tokens, view } = this;
    if (!tokens.length) return;
    view.select(nextOf(tokens, view.selected, by), true);
  }

  /* n and p, as the buttons say; true where the key was one of them. */
  onKey(event) {
    const by = { n: 1, p: -1 }[event.key];
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey) this.find.focus();
    else if (!by || event.ctrlKey || event.metaKey || event.altKey) return false;
    event.preventDefault();
    event.stopPropagation();
    this.view.tip.hidden = true;
    if (by) this.step(by);
    return true;
  }

  // ---- text -------------------------------------------------------------------------------------------------------

  /* The text as one string in small letters, any white space as a space, and the token of each of its characters. */
  read() {
    const { view } = this;
    const begins = new Set(view.data.starts);
    const parts = [];
    this.tokenOf = [];
    const add = (text, token) => {
      parts.push(text);
      for (let i = 0; i < text.length; i++) this.tokenOf.push(token);
    };
    for (let i = 0; i < view.count; i++) {
      const piece = view.data.pieces[view.tokens[i]];
      if (begins.has(i)) add(APART, i);
      add(piece[NAME] === "start of text" ? APART : asSearched(piece[0]), i);
    }
    this.haystack = parts.join("");
  }

  search() {
    const { view } = this;
    for (const [first, last] of this.hits) this.mark(first, last, false);
    this.hits = [];
    this.hit = -1;
    const wanted = asSearched(this.find.value);
    if (wanted) {
      if (this.haystack === null) this.read();
      let at = this.haystack.indexOf(wanted);
      while (at >= 0) {
        let last = this.tokenOf[at + wanted.length - 1];
        while (last + 1 < view.count && view.data.pieces[view.tokens[last + 1]][GOES_ON]) last += 1;
        this.hits.push([this.tokenOf[at], last]);
        at = this.haystack.indexOf(wanted, at + wanted.length);
      }
      for (const [first, last] of this.hits) this.mark(first, last, true);
      if (this.hits.length) view.reveal(this.hits[this.nextHit(view.selected - 1, 1)][0]);
    }
    this.drawFound();
  }

  mark(first, last, on) {
    for (let i = first; i <= last && this.view.spans[i]; i++) this.view.spans[i].classList.toggle("hit", on);
  }

  nextHit(from, by) {
    const firsts = this.hits.map(([first]) => first);
    return firsts.indexOf(nextOf(firsts, from, by));
  }

  stepHit(by) {
    if (!this.hits.length) return;
    const many = this.hits.length;
    const { selected } = this.view;
    if (this.hit >= 0 && this.hits[this.hit][0] === selected) this.hit = (this.hit + by + many) % many;
    else this.hit = this.nextHit(by > 0 ? selected - 1 : selected, by);
    this.view.select(this.hits[this.hit][0]);
    this.drawFound();
  }

  drawFound() {
    const many = this.hits.length;
    for (const button of this.findButtons) button.disabled = !many;
    if (!this.find.value) this.found.textContent = "";
    else if (!many) this.found.textContent = "not found";
    else if (this.hit >= 0) this.found.textContent = `${this.hit + 1} of ${many}`;
    else this.found.textContent = `${many} ${many === 1 ? "hit" : "hits"}`;
  }
}

/* Of ascending numbers the next one after `from`, or before it; round from the end to the beginning. */
function nextOf(numbers, from, by) {
  if (by > 0) return numbers.find((number) => number > from) ?? numbers[0];
  return numbers.findLast((number) => number < from) ?? numbers[numbers.length - 1];
}

function asSearched(text) {
  return text.replace(/↵\n|⇥\t|\s/g, " ").toLowerCase();
}
