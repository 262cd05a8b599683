// What is being looked at: pins, tab, order, filter, thresholds, reading, colours. In a page it is in the address.

const DEFAULTS = { pins: null, tab: "ffn_neurons", sort: "", filter: "", min: 0, share: 0.03, words: "", theme: "" };
const NUMBERS = ["min", "share"];
export const MOST_PINS = 6;

export class State {
  /**
   * @param {boolean} inAddress whether the address is this view's to write into
   * @param {object} first what a view starts with, where the address says nothing
   */
  constructor(inAddress, first = {}) {
    this.inAddress = inAddress;
    this.listeners = [];
    this.values = { ...DEFAULTS, ...first, ...(inAddress ? read(location.hash) : {}) };
    this.explicit = this.values.pins !== null;
    if (inAddress) {
      addEventListener("hashchange", () => {
        this.values = { ...DEFAULTS, ...read(location.hash) };
        this.values.pins ??= [];
        this.tell(Object.keys(DEFAULTS));
      });
    }
  }

  get pins() {
    return this.values.pins ?? [];
  }

  /** Call `listen(changed)` after every change, with the names of what changed. */
  watch(listen) {
    this.listeners.push(listen);
  }

  set(changes) {
    Object.assign(this.values, changes);
    if (this.inAddress) history.replaceState(null, "", `#${written(this.values)}`);
    this.tell(Object.keys(changes));
  }

  tell(changed) {
    for (const listen of this.listeners) listen(changed);
  }

  toggle(id) {
    const pins = this.pins.includes(id) ? this.pins.filter((pin) => pin !== id) : [...this.pins, id].slice(-MOST_PINS);
    this.set({ pins });
  }

  /** The number that a pinned part is marked with everywhere; 0 where it is not. */
  number(id) {
    return this.pins.indexOf(id) + 1;
  }
}

function read(hash) {
  const found = {};
  for (const [name, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (name === "pins") found.pins = value.split(",").filter(Boolean).slice(0, MOST_PINS);
    else if (NUMBERS.includes(name) && Number.isFinite(Number(value))) found[name] = Number(value);
    else if (Object.hasOwn(DEFAULTS, name) && !NUMBERS.includes(name)) found[name] = value;
  }
  return found;
}

function written(values) {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (name === "pins") said.set(name, (value ?? []).join(","));
    else if (value !== DEFAULTS[name]) said.set(name, String(value));
  }
  return said.toString().replaceAll("%2C", ",").replaceAll("%40", "@").replaceAll("%3E", ">");
}
