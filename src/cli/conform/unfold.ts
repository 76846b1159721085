// Turns a recording's folded lists into runs and events that can be compared.
//
// A run of SPTE changes stays a run: its old and new values differ only in their PFNs, so both have one meaning,
// a small integer. A run whose meaning does change on the way is taken apart, one element at a time, when it is met.
// Repeated events are stepped through, never stored. 64-bit values wrap as the format says.

import type { RawChange, RawEvent, RawField } from './reader.ts';

// The meaning of an SPTE, as an integer.
//
//   bits 0-2  class           bits 3-8   of a leaf: W, X, A, D, host-writable, mmu-writable
//                             bits 9-27  of an MMIO SPTE: the memslot generation
export const NONPRESENT = 0;
export const MMIO = 1;
export const FROZEN = 2;
export const TABLE = 3;
export const LEAF = 4;
/** Bits that are none of the above; equal to nothing an engine reports. */
export const UNKNOWN = 7;
export const WRITABLE = 1 << 3;
export const EXECUTABLE = 1 << 4;
export const ACCESSED = 1 << 5;
export const DIRTY = 1 << 6;
export const HOST_WRITABLE = 1 << 7;
export const MMU_WRITABLE = 1 << 8;
const GENERATION_SHIFT = 9;

export const CLASS_MASK = 7;

/** The integer of an MMIO SPTE of this generation. */
export function mmioMeaning(generation: number): number {
  return MMIO | (generation << GENERATION_SHIFT);
}

/** Renders a meaning for a person. */
export function describeMeaning(meaning: number): string {
  switch (meaning & CLASS_MASK) {
    case NONPRESENT:
      return 'non-present';
    case MMIO:
      return `mmio generation ${meaning >> GENERATION_SHIFT}`;
    case FROZEN:
      return 'frozen';
    case TABLE:
      return 'table';
    case LEAF: {
      const letters: [number, string][] = [
        [WRITABLE, 'W'],
        [EXECUTABLE, 'X'],
        [ACCESSED, 'A'],
        [DIRTY, 'D'],
        [HOST_WRITABLE, 'host-W'],
        [MMU_WRITABLE, 'mmu-W'],
      ];
      return ['leaf', ...letters.filter(([bit]) => (meaning & bit) !== 0).map(([, name]) => name)].join(' ');
    }
    default:
      return 'unknown';
  }
}

/** An SPTE read from its hexadecimal text. */
interface Spte {
  readonly meaning: number;
  /** Bits 12 to 51: the PFN of a leaf or table, the gfn of an MMIO SPTE. */
  readonly frame: number;
}

const PRESENT_HIGH = 0x800;
const FRAME_STEP = 0x1000n;

/** What the 64 bits of an NPT SPTE of this level mean, on Linux 6.12. */
function meaningOf(high: number, low: number, level: number): number {
  if (high === 0x80000000 && low === 0) return NONPRESENT;
  if (high === 0x80000000 && low === 0x5a0) return FROZEN;
  if ((low & PRESENT_HIGH) !== 0) {
    if ((low & 1) === 0) return UNKNOWN;
    if (level > 1 && (low & 0x80) === 0) return TABLE;
    let meaning = LEAF;
    if ((low & 0x2) !== 0) meaning |= WRITABLE;
    if ((high & 0x80000000) === 0) meaning |= EXECUTABLE;
    if ((low & 0x20) !== 0) meaning |= ACCESSED;
    if ((low & 0x40) !== 0) meaning |= DIRTY;
    if ((low & 0x200) !== 0) meaning |= HOST_WRITABLE;
    if ((low & 0x400) !== 0) meaning |= MMU_WRITABLE;
    return meaning;
  }
  // Generation bits 0 to 7 lie at 3 to 10 and bits 8 to 18 at 52 to 62; the marker is bit 51, value 7 in bits 0 to 2.
  if ((high & 0x80000) !== 0 && (low & 7) === 7) {
    return mmioMeaning(((low >>> 3) & 0xff) | (((high >>> 20) & 0x7ff) << 8));
  }
  return UNKNOWN;
}

function frameOf(high: number, low: number, meaning: number): number {
  // An MMIO SPTE keeps its marker in bit 51, so its frame has one bit less.
  const top = (meaning & CLASS_MASK) === MMIO ? 0x7ffff : 0xfffff;
  return (high & top) * 0x100000 + (low >>> 12);
}

function parseSpte(hex: string, level: number): Spte {
  const high = hex.length > 8 ? Number.parseInt(hex.slice(0, -8), 16) : 0;
  const low = Number.parseInt(hex.slice(-8), 16);
  const meaning = meaningOf(high, low, level);
  return { meaning, frame: frameOf(high, low, meaning) };
}

/** The meaning of the SPTE with this hexadecimal text. */
export function meaningOfSpte(hex: string, level: number): number {
  return parseSpte(hex, level).meaning;
}

function toStep(step: number | string | undefined): bigint {
  return BigInt.asIntN(64, BigInt(step ?? 0));
}

/** The value `k` steps on, with the wrap at 64 bits. */
function stepped(hex: string, step: bigint, k: number): string {
  return BigInt.asUintN(64, BigInt(`0x${hex}`) + step * BigInt(k)).toString(16);
}

/** Maximal runs of recorded changes with one meaning each; the object is reused from one `next()` to the following. */
export class ChangeRuns {
  asId = 0;
  gfn = 0;
  level = 0;
  oldMeaning = 0;
  newMeaning = 0;
  count = 0;
  gfnStep = 0;
  /** False if the recording itself is impossible here: a leaf that changes its PFN, an MMIO SPTE of another gfn. */
  keepsFrame = true;

  private readonly changes: readonly RawChange[];
  private nextIndex = 0;
  /** Elements of changes[nextIndex] already given out one by one. */
  private taken = 0;

  constructor(changes: readonly RawChange[]) {
    this.changes = changes;
  }

  next(): boolean {
    if (this.nextIndex === this.changes.length) return false;
    const change = this.changes[this.nextIndex];
    const [asId, gfn, level, oldHex, newHex, total = 1, gfnStep = 0] = change;
    this.asId = asId;
    this.level = level;
    this.gfnStep = gfnStep;
    const oldStep = toStep(change[7]);
    const newStep = toStep(change[8]);
    if (this.taken === 0 && this.hasOneMeaning(oldHex, oldStep, total) && this.hasOneMeaning(newHex, newStep, total)) {
      this.gfn = gfn;
      this.count = total;
      this.set(parseSpte(oldHex, level), parseSpte(newHex, level), oldStep, newStep);
      this.nextIndex++;
      return true;
    }
    const k = this.taken;
    this.gfn = gfn + k * gfnStep;
    this.count = 1;
    this.set(parseSpte(stepped(oldHex, oldStep, k), level), parseSpte(stepped(newHex, newStep, k), level), 0n, 0n);
    if (++this.taken === total) {
      this.taken = 0;
      this.nextIndex++;
    }
    return true;
  }

  /** Whether every element of a run has the bits of the first outside the frame: the step moves whole frames, without overflow. */
  private hasOneMeaning(hex: string, step: bigint, total: number): boolean {
    if (total === 1 || step === 0n) return true;
    if (step % FRAME_STEP !== 0n) return false;
    const first = BigInt(`0x${hex}`);
    const last = first + step * BigInt(total - 1);
    // Bit 51 marks MMIO, so a frame that stays below it is enough to ask for.
    return first >> 51n === last >> 51n;
  }

  private set(oldSpte: Spte, newSpte: Spte, oldStep: bigint, newStep: bigint): void {
    this.oldMeaning = oldSpte.meaning;
    this.newMeaning = newSpte.meaning;
    const wasLeaf = (oldSpte.meaning & CLASS_MASK) === LEAF;
    const isLeaf = (newSpte.meaning & CLASS_MASK) === LEAF;
    this.keepsFrame =
      (!(wasLeaf && isLeaf) || (oldSpte.frame === newSpte.frame && oldStep === newStep)) &&
      this.isOwnMmio(oldSpte, oldStep) &&
      this.isOwnMmio(newSpte, newStep);
  }

  private isOwnMmio(spte: Spte, step: bigint): boolean {
    if ((spte.meaning & CLASS_MASK) !== MMIO) return true;
    return spte.frame === this.gfn && (this.count === 1 || step === BigInt(this.gfnStep) * FRAME_STEP);
  }
}

/** A field of an event, as a number where a double holds it. */
export type FieldValue = number | bigint;

/** How a field is written: a whole number, or hexadecimal text without 0x. */
export type FieldKind = 'whole' | 'hex';

function toBig(value: RawField, kind: FieldKind): bigint {
  if (typeof value === 'number') return BigInt(value);
  if (value.startsWith('0x')) return BigInt(value);
  if (kind === 'hex' && /^[0-9a-f]{1,16}$/.test(value)) return BigInt(`0x${value}`);
  return -1n;
}

export function normalise(value: bigint): FieldValue {
  return value >= -0x1fffffffffffffn && value <= 0x1fffffffffffffn ? Number(value) : value;
}

/** What an event yields: its position among the changes, its name and its fields. */
export interface PlainEvent {
  readonly pos: number;
  readonly name: string;
  readonly fields: readonly FieldValue[];
}

/** Steps through the events named in `kinds`, repetitions included; the others are passed over unread. */
export function* plainEvents(
  events: readonly RawEvent[],
  kinds: ReadonlyMap<string, readonly FieldKind[]>,
): Generator<PlainEvent> {
  for (const event of events) {
    if (event[1] !== 'rep') {
      const fieldKinds = kinds.get(event[1]);
      if (fieldKinds !== undefined) yield toPlain(event, undefined, 0, fieldKinds);
      continue;
    }
    const count = event[2] as number;
    const steps = event[4] as readonly (readonly RawField[])[];
    const repeated = (event[3] as RawEvent[])
      .map((inner, k) => ({ inner, step: steps[k], fieldKinds: kinds.get(inner[1]) }))
      .filter((one) => one.fieldKinds !== undefined);
    if (repeated.length === 0) continue;
    for (let k = 0; k < count; k++) {
      for (const { inner, step, fieldKinds } of repeated) yield toPlain(inner, step, k, fieldKinds!);
    }
  }
}

function toPlain(
  event: RawEvent,
  step: readonly RawField[] | undefined,
  k: number,
  kinds: readonly FieldKind[],
): PlainEvent {
  const fields = new Array<FieldValue>(event.length - 2);
  for (let j = 2; j < event.length; j++) {
    const raw = event[j] as RawField;
    const move = step?.[j] ?? 0;
    if (typeof raw === 'number' && typeof move === 'number') {
      fields[j - 2] = raw + k * move;
    } else {
      const value = toBig(raw, kinds[j - 2] ?? 'whole') + toStep(move) * BigInt(k);
      fields[j - 2] = normalise(value < 0n ? value : BigInt.asUintN(64, value));
    }
  }
  return { pos: event[0] + k * Number(step?.[0] ?? 0), name: event[1], fields };
}
