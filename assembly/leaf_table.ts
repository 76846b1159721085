// Leaf tables (LT entries): 512 keys, a bit-plane for each flag in which they differ, counts in the entry.
//
// A block of 256 bytes has four places, in two pairs: 0 and 2, 1 and 3, each pair word by word. Bits 0 to 3 have the places
// of their numbers, so that presence and A of a page are in one cache line; bits 4 to 7 are guests in those that are left.

import { allocatePlane, allocateQuad, freeTop, release, releasedTo } from './blocks';
import {
  blockPtr,
  COUNTED_BIT,
  COUNTED_SHIFT,
  descriptor,
  ENTRY_BYTES,
  flagsOf,
  isSingle,
  KEPT,
  LT,
  planesOf,
  presentCount,
  setUniform,
} from './entry';
import { CLASS_PLANE, CLASS_QUAD } from './layout';

/** Whether so many planes have a place that those of bits 4 to 7 have a block of their own. */
function hasTwoBlocks(allocated: u32): bool {
  return popcnt(allocated) > 4;
}

export function releasePlanes(entryPtr: usize): void {
  const allocated = load<u32>(entryPtr) >> 24;
  if (allocated == 0) return;
  release(isSingle(allocated) ? CLASS_PLANE : CLASS_QUAD, load<u32>(entryPtr, 4));
  if (hasTwoBlocks(allocated)) release(CLASS_QUAD, load<u32>(entryPtr, 12));
}

/** From a word of presence to the counted bit's, where both have a plane: each has its own place then. */
const COUNTED_BESIDE: usize = 8;

function placeInQuad(place: u32): usize {
  return ((<usize>(place & 1)) << 7) | ((<usize>(place & 2)) << 2);
}

/** The place that `guests`, what `block2` holds beside one block, gives to `bit`, one of 4 to 7. */
function guestPlace(guests: u32, bit: u32): u32 {
  return (guests >> ((bit & 3) << 1)) & 3;
}

/** Word `word` of the plane of `bit`, which must be allocated. */
export function wordPtr(entryPtr: usize, bit: u32, word: i32): usize {
  const allocated = load<u32>(entryPtr) >> 24;
  const offset = (<usize>word) << 3;
  if (isSingle(allocated)) return blockPtr(load<u32>(entryPtr, 4)) + offset;
  if (bit < 4) return blockPtr(load<u32>(entryPtr, 4)) + (offset << 1) + placeInQuad(bit);
  return highWordPtr(entryPtr, allocated, bit) + (offset << 1);
}

/** As wordPtr() of presence, for a descriptor at hand. */
function presencePtr(entryPtr: usize, desc: u32, word: i32): usize {
  return blockPtr(load<u32>(entryPtr, 4)) + ((<usize>word) << (isSingle(desc >> 24) ? 3 : 4));
}

/** The first word of the plane of `bit`, one of 4 to 7, of which there are others. */
function highWordPtr(entryPtr: usize, allocated: u32, bit: u32): usize {
  const block2 = load<u32>(entryPtr, 12);
  if (hasTwoBlocks(allocated)) return blockPtr(block2) + placeInQuad(bit & 3);
  return blockPtr(load<u32>(entryPtr, 4)) + placeInQuad(guestPlace(block2, bit));
}

/** Bytes from a word of a plane to its next. */
function wordStep(entryPtr: usize): usize {
  return isSingle(load<u32>(entryPtr) >> 24) ? 8 : 16;
}

function copyPlane(to: usize, from: usize, fromStep: usize): void {
  for (let word: usize = 0; word < 8; word++) store<u64>(to + (word << 4), load<u64>(from + word * fromStep));
}

/** Gives `bit` a place for a plane, and moves others out of its way. */
function allocatePlace(entryPtr: usize, bit: u32): void {
  const allocated = load<u32>(entryPtr) >> 24;
  const planes = popcnt(allocated);
  if (planes == 0) {
    store<u32>(entryPtr, allocatePlane(), 4);
    return;
  }
  if (planes > 4) return;
  if (planes == 4) {
    const quad = allocateQuad();
    for (let left = allocated & 0xf0; left != 0; left &= left - 1) {
      const high = ctz(left);
      copyPlane(blockPtr(quad) + placeInQuad(high & 3), highWordPtr(entryPtr, allocated, high), 16);
    }
    store<u32>(entryPtr, quad, 12);
    return;
  }
  if (planes == 1) {
    const only = ctz(allocated);
    const place = only & 3;
    const single = load<u32>(entryPtr, 4);
    const quad = allocateQuad();
    copyPlane(blockPtr(quad) + placeInQuad(place), blockPtr(single), 8);
    release(CLASS_PLANE, single);
    store<u32>(entryPtr, quad, 4);
    if (only > 3) store<u32>(entryPtr, place << (place << 1), 12);
  }
  let taken = allocated & 15;
  let guests = load<u32>(entryPtr, 12);
  let moved: u32 = 0;
  for (let left = allocated & 0xf0; left != 0; left &= left - 1) {
    const high = ctz(left);
    const place = guestPlace(guests, high);
    taken |= 1 << place;
    if (place == bit) moved = high;
  }
  const guest = bit > 3 ? bit : moved;
  if (guest == 0) return;
  const free = ctz(~taken);
  if (moved != 0) {
    const block = blockPtr(load<u32>(entryPtr, 4));
    copyPlane(block + placeInQuad(free), block + placeInQuad(bit), 16);
  }
  const shift = (guest & 3) << 1;
  guests = (guests & ~((<u32>3) << shift)) | ((<u32>free) << shift);
  store<u32>(entryPtr, guests, 12);
}

/** Gives `bit` a plane that holds its uniform value. */
function addPlane(entryPtr: usize, bit: u32): void {
  const mask: u32 = 1 << bit;
  if ((load<u32>(entryPtr) & (mask << 24)) == 0) allocatePlace(entryPtr, bit);
  const desc = load<u32>(entryPtr);
  store<u32>(entryPtr, desc | (mask << 24) | (mask << 16));
  const value: u64 = (desc >> (8 + bit)) & 1 ? ~(<u64>0) : 0;
  const step = wordStep(entryPtr);
  const first = wordPtr(entryPtr, bit, 0);
  for (let at = first; at < first + 8 * step; at += step) store<u64>(at, value);
}

/** Makes `bit` uniform; its plane keeps its place. */
function dropPlane(entryPtr: usize, bit: u32, value: u32): void {
  const mask = (1 << bit) as u32;
  store<u32>(entryPtr, (load<u32>(entryPtr) & ~(mask << 8) & ~(mask << 16)) | ((value & 1) << (8 + bit)));
}

/** Bits [from, to) that fall in word `word` of a plane. */
export function wordMask(word: i32, from: i32, to: i32): u64 {
  const low = from - (word << 6);
  const high = to - (word << 6);
  let mask: u64 = ~(<u64>0);
  if (low > 0) mask <<= <u64>low;
  if (high < 64) mask &= ~(~(<u64>0) << (<u64>high));
  return mask;
}

/** One word of `bit`'s values, from its plane or its uniform value. */
export function valueWord(entryPtr: usize, bit: u32, word: i32): u64 {
  const desc = load<u32>(entryPtr);
  if ((desc >> (16 + bit)) & 1) return load<u64>(wordPtr(entryPtr, bit, word));
  return (desc >> (8 + bit)) & 1 ? ~(<u64>0) : 0;
}

/** An empty leaf table that keeps its side records and its mark. */
function emptyLeafTable(entryPtr: usize): void {
  const keep = load<u32>(entryPtr, 8) & KEPT;
  releasePlanes(entryPtr);
  store<u64>(entryPtr, descriptor(LT, 1, 0));
  store<u64>(entryPtr, keep, 8);
}

/** Turns planes whose present values are all alike into flags, and frees the block once none differs. */
function normalise(entryPtr: usize): void {
  const present = presentCount(entryPtr);
  if (present == 0) {
    emptyLeafTable(entryPtr);
    return;
  }
  if (present == 512 && (planesOf(entryPtr) & 1) != 0) dropPlane(entryPtr, 0, 1);
  for (let bit: u32 = 1; bit < 8; bit++) {
    if (((planesOf(entryPtr) >> bit) & 1) == 0) continue;
    let set = false;
    let clear = false;
    for (let word = 0; word < 8 && !(set && clear); word++) {
      const presentWord = valueWord(entryPtr, 0, word);
      const value = load<u64>(wordPtr(entryPtr, bit, word));
      if (value & presentWord) set = true;
      if (~value & presentWord) clear = true;
    }
    if (!(set && clear)) dropPlane(entryPtr, bit, set ? 1 : 0);
  }
  if (planesOf(entryPtr) == 0) forgetPlanes(entryPtr);
  else if (hasTwoBlocks(load<u32>(entryPtr) >> 24)) shareBlock(entryPtr);
}

/** Moves the planes that still differ into one block, if they are four at most, and frees the other. */
function shareBlock(entryPtr: usize): void {
  const desc = load<u32>(entryPtr);
  const planes = (desc >> 16) & 255;
  if (hasTwoBlocks(planes)) return;
  // One plane alone would have a smaller block: presence, which has just been found uniform, keeps its place too.
  const allocated = isSingle(planes) ? planes | 1 : planes;
  const block = blockPtr(load<u32>(entryPtr, 4));
  const block2 = load<u32>(entryPtr, 12);
  let taken = allocated & 15;
  let guests: u32 = 0;
  for (let left = planes & 0xf0; left != 0; left &= left - 1) {
    const place = ctz(left) & 3;
    const free = ctz(~taken);
    copyPlane(block + placeInQuad(free), blockPtr(block2) + placeInQuad(place), 16);
    taken |= 1 << free;
    guests |= free << (place << 1);
  }
  release(CLASS_QUAD, block2);
  store<u32>(entryPtr, (desc & 0x00ffffff) | (allocated << 24));
  store<u32>(entryPtr, guests, 12);
}

/** Frees the planes of a leaf table in which no bit differs. */
function forgetPlanes(entryPtr: usize): void {
  releasePlanes(entryPtr);
  store<u32>(entryPtr, load<u32>(entryPtr) & 0x00ffffff);
  store<u32>(entryPtr, 0, 4);
  store<u32>(entryPtr, 0, 12);
}

/** The flags of key `index` in a leaf table; 0 if not present. */
export function ltFlags(entryPtr: usize, index: i32): u32 {
  const desc = load<u32>(entryPtr);
  if (desc & (1 << 16)) {
    const word = load<u64>(presencePtr(entryPtr, desc, index >> 6));
    if (((word >> <u64>(index & 63)) & 1) == 0) return 0;
  }
  return ltFlagsUnguessed(entryPtr, index);
}

/**
 * As ltFlags(), for a key that may as well be present as not: no branch guesses it. Where the answer can be foreseen, as of a
 * page that was zapped just now, ltFlags() is faster.
 */
export function ltFlagsUnguessed(entryPtr: usize, index: i32): u32 {
  const desc = load<u32>(entryPtr);
  let flags = (desc >> 8) & 255;
  const shift = <u64>(index & 63);
  for (let left = (desc >> 16) & 255; left != 0; left &= left - 1) {
    const bit = ctz(left);
    const value = <u32>(load<u64>(wordPtr(entryPtr, bit, index >> 6)) >> shift) & 1;
    flags = (flags & ~((<u32>1) << bit)) | (value << bit);
  }
  return flags & -(flags & 1);
}

/** Sets keys [from, to) of a leaf table present with `flags`. */
export function ltSet(entryPtr: usize, from: i32, to: i32, flags: u32): void {
  const keep = load<u32>(entryPtr, 8) & KEPT;
  if (from == 0 && to == 512) {
    releasePlanes(entryPtr);
    setUniform(entryPtr, 2, 1, flags);
    store<u32>(entryPtr, load<u32>(entryPtr, 8) | keep, 8);
    return;
  }
  const isAccessed = (flags & COUNTED_BIT) != 0;
  let counts = <u32>(to - from) | (isAccessed ? (<u32>(to - from)) << 10 : 0);
  const firstWord = from >> 6;
  const lastWord = (to - 1) >> 6;
  if (presentCount(entryPtr) == 0) {
    // Nothing else to differ from: the flags are uniform, presence alone has a plane.
    emptyLeafTable(entryPtr);
    addPlane(entryPtr, 0);
    store<u32>(entryPtr, (load<u32>(entryPtr) & ~0xff00) | ((flags & ~1) << 8));
    counts |= keep;
  } else {
    // The keys are counted anew: what they count for now is taken off word by word.
    counts += load<u32>(entryPtr, 8);
    const desc = load<u32>(entryPtr);
    for (let left = ((desc >> 8) ^ flags) & 0xfe & ~(desc >> 16); left != 0; left &= left - 1) {
      addPlane(entryPtr, ctz(left));
    }
  }
  const planes = planesOf(entryPtr);
  for (let word = firstWord; word <= lastWord; word++) {
    const mask = wordMask(word, from, to);
    let were: u64 = mask;
    if (planes & 1) {
      const ptr = wordPtr(entryPtr, 0, word);
      were &= load<u64>(ptr);
      store<u64>(ptr, load<u64>(ptr) | mask);
    }
    if (were != 0) {
      counts -= <u32>popcnt(were);
      counts -= (<u32>popcnt(were & valueWord(entryPtr, COUNTED_SHIFT, word))) << 10;
    }
    for (let left = planes & 0xfe; left != 0; left &= left - 1) {
      const bit = ctz(left);
      const ptr = wordPtr(entryPtr, bit, word);
      store<u64>(ptr, (flags >> bit) & 1 ? load<u64>(ptr) | mask : load<u64>(ptr) & ~mask);
    }
  }
  store<u32>(entryPtr, counts, 8);
  if ((counts & 0x3ff) == 512) normalise(entryPtr);
}

/** As ltSet() for one key that is absent. */
export function ltAdd(entryPtr: usize, index: i32, flags: u32): void {
  const desc = load<u32>(entryPtr);
  const counts = load<u32>(entryPtr, 8);
  const planes = (desc >> 16) & 255;
  const others = counts & 0x3ff;
  // The first key decides what is uniform, the last one normalises, and a bit that starts to differ takes a plane.
  if (others == 0 || others == 511 || (((desc >> 8) ^ flags) & 0xfe & ~planes) != 0) {
    ltSet(entryPtr, index, index + 1, flags);
    return;
  }
  let mask: u64 = 1;
  mask <<= <u64>(index & 63);
  for (let left = planes; left != 0; left &= left - 1) {
    const bit = ctz(left);
    const ptr = wordPtr(entryPtr, bit, index >> 6);
    const value = load<u64>(ptr);
    store<u64>(ptr, (flags >> bit) & 1 ? value | mask : value & ~mask);
  }
  store<u32>(entryPtr, counts + 1 + (flags & COUNTED_BIT ? 1 << 10 : 0), 8);
}

/** Keys that ltReleaseRun() found present, or ltAgeRun() young. */
export let runHits: u64 = 0;
/** What any of the leaf tables of ltReleaseRun() keeps. */
export let releasedKeeps: u32 = 0;

/**
 * Frees the planes of the leaf tables from the entry at `first` on, up to `end` or an entry that is none, and returns which.
 * The entries are as they were: they go with their table, or ltEmptyReleased() comes next.
 */
export function ltReleaseRun(first: usize, end: usize): usize {
  let planes = freeTop(CLASS_PLANE);
  let quads = freeTop(CLASS_QUAD);
  let keys: u64 = 0;
  let keeps: u32 = 0;
  let at = first;
  for (; at < end; at += ENTRY_BYTES) {
    const desc = load<u32>(at);
    if ((desc & 7) != LT) break;
    const counts = load<u32>(at, 8);
    keeps |= counts;
    keys += <u64>(counts & 0x3ff);
    const allocated = desc >> 24;
    if (!isSingle(allocated)) {
      store<u32>(quads, load<u32>(at, 4));
      quads += 4;
      if (hasTwoBlocks(allocated)) {
        store<u32>(quads, load<u32>(at, 12));
        quads += 4;
      }
    } else if (allocated != 0) {
      store<u32>(planes, load<u32>(at, 4));
      planes += 4;
    }
  }
  releasedTo(CLASS_PLANE, planes);
  releasedTo(CLASS_QUAD, quads);
  runHits = keys;
  releasedKeeps = keeps & KEPT;
  return at;
}

/** Makes the leaf tables whose planes are freed, from the entry at `first` up to `end`, empty. */
export function ltEmptyReleased(first: usize, end: usize): void {
  for (let at = first; at < end; at += ENTRY_BYTES) {
    store<u64>(at, descriptor(LT, 1, 0));
    store<u64>(at, load<u32>(at, 8) & KEPT, 8);
  }
}

/** Makes keys [from, to) of a leaf table absent. Returns how many were present. */
export function ltClear(entryPtr: usize, from: i32, to: i32): u32 {
  let cleared: u32 = 0;
  if (from == 0 && to == 512) {
    cleared = presentCount(entryPtr);
    if (cleared != 0) emptyLeafTable(entryPtr);
    return cleared;
  }
  while (from < to) {
    const end = min((from | 63) + 1, to);
    cleared += ltClearInWord(entryPtr, from, end);
    from = end;
  }
  return cleared;
}

/** As ltClear() of keys that one word of presence holds, [from, to). */
export function ltClearInWord(entryPtr: usize, from: i32, to: i32): u32 {
  const counts = load<u32>(entryPtr, 8);
  if ((counts & 0x3ff) == 0) return 0;
  let desc = load<u32>(entryPtr);
  if ((desc & (1 << 16)) == 0) {
    addPlane(entryPtr, 0);
    desc = load<u32>(entryPtr);
  }
  const ptr = presencePtr(entryPtr, desc, from >> 6);
  const value = load<u64>(ptr);
  // Whether any is present is for no branch to guess: where pages are zapped at random it is wrong half of the time.
  const others = <u64>(64 + from - to);
  const place = <u64>(from & 63);
  const gone = value & ((~(<u64>0) >> others) << place);
  const cleared = <u32>popcnt(gone);
  let accessed: u32 = 0;
  if (desc & (COUNTED_BIT << 16)) accessed = <u32>popcnt(gone & load<u64>(ptr, COUNTED_BESIDE));
  else if (desc & (COUNTED_BIT << 8)) accessed = cleared;
  store<u64>(ptr, value ^ gone);
  store<u32>(entryPtr, counts - cleared - (accessed << 10), 8);
  if ((counts & 0x3ff) == cleared) emptyLeafTable(entryPtr);
  return cleared;
}

/** Words of the keys chosen by ltSelect(). */
const SELECTION: usize = 512;

/** Marks in SELECTION, in the words that [from, to) meets, the present keys that have all of `need`. Returns how many. */
function ltSelect(entryPtr: usize, from: i32, to: i32, need: u32): u32 {
  let selected: u32 = 0;
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    let value = valueWord(entryPtr, 0, word) & wordMask(word, from, to);
    for (let left = need & 0xfe; left != 0; left &= left - 1) value &= valueWord(entryPtr, ctz(left), word);
    store<u64>(SELECTION + ((<usize>word) << 3), value);
    selected += <u32>popcnt(value);
  }
  return selected;
}

/** How many present keys of [from, to) have all of `need`. */
export function ltCount(entryPtr: usize, from: i32, to: i32, need: u32): u32 {
  const desc = load<u32>(entryPtr);
  if (((desc >> 8) & need & ~((desc >> 16) & 255)) != (need & ~((desc >> 16) & 255))) return 0;
  if (from == 0 && to == 512) {
    if ((need & ~1 & ((desc >> 16) & 255)) == 0) return presentCount(entryPtr);
    if ((need & ~1) == COUNTED_BIT) return (load<u32>(entryPtr, 8) >> 10) & 0x3ff;
  }
  return ltSelect(entryPtr, from, to, need);
}

/** Clears `clear` and sets `set` in the present keys of [from, to) that have all of `need`. Returns how many. */
export function ltModify(entryPtr: usize, from: i32, to: i32, need: u32, clear: u32, set: u32): u32 {
  const desc = load<u32>(entryPtr);
  const planes = (desc >> 16) & 255;
  if (((desc >> 8) & need & ~planes) != (need & ~planes)) return 0;
  const whole = from == 0 && to == 512;
  if (whole && need == (COUNTED_BIT | 1) && clear == COUNTED_BIT && set == 0) return ltClearCounted(entryPtr);
  // Every present key that lacks `need` may be cleared with the rest if all that is needed is what is cleared.
  const all = whole && ((need & ~1 & planes) == 0 || ((need & ~1) == clear && set == 0));
  let changed: u32;
  if (all) {
    changed = ltCount(entryPtr, 0, 512, need);
    if (changed == 0) return 0;
    const both = (clear | set) & 0xfe;
    const on = set & ~clear;
    store<u32>(entryPtr, (load<u32>(entryPtr) & ~((both << 8) | (both << 16))) | (on << 8));
    const present = presentCount(entryPtr);
    if ((clear | set) & COUNTED_BIT) {
      const counts = load<u32>(entryPtr, 8) & ~(0x3ff << 10);
      store<u32>(entryPtr, set & COUNTED_BIT ? counts | (present << 10) : counts, 8);
    }
    if (planesOf(entryPtr) == 0 && load<u32>(entryPtr) >> 24 != 0) forgetPlanes(entryPtr);
    return changed;
  }
  changed = ltSelect(entryPtr, from, to, need);
  if (changed == 0) return 0;
  for (let left = (clear | set) & 0xfe; left != 0; left &= left - 1) {
    const bit = ctz(left);
    const mask: u32 = 1 << bit;
    const want = (set & mask) != 0;
    if ((planesOf(entryPtr) & mask) == 0) {
      if (((flagsOf(entryPtr) & mask) != 0) == want) continue;
      addPlane(entryPtr, bit);
    }
    let were: u32 = 0;
    for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
      const ptr = wordPtr(entryPtr, bit, word);
      const chosen = load<u64>(SELECTION + ((<usize>word) << 3));
      const before = load<u64>(ptr);
      were += <u32>popcnt(before & chosen);
      store<u64>(ptr, want ? before | chosen : before & ~chosen);
    }
    if (mask == COUNTED_BIT) {
      store<u32>(entryPtr, load<u32>(entryPtr, 8) + (((want ? changed : 0) - were) << 10), 8);
    }
  }
  if (presentCount(entryPtr) == 512) normalise(entryPtr);
  return changed;
}

// Masks stand for the 512 keys of a leaf table in memory: eight words, a bit for each key.

/** Clears flag `bit`, not the counted one, in the present keys that `masks` choose. Returns how many had it. */
export function ltTakeMasked(entryPtr: usize, bit: u32, masks: usize): u32 {
  let taken: u32 = 0;
  for (let word = 0; word < 8; word++) {
    const chosen = load<u64>(masks + ((<usize>word) << 3));
    taken += <u32>popcnt(chosen & valueWord(entryPtr, 0, word) & valueWord(entryPtr, bit, word));
  }
  if (taken == 0) return 0;
  if (((planesOf(entryPtr) >> bit) & 1) == 0) addPlane(entryPtr, bit);
  for (let word = 0; word < 8; word++) {
    const chosen = load<u64>(masks + ((<usize>word) << 3)) & valueWord(entryPtr, 0, word);
    const ptr = wordPtr(entryPtr, bit, word);
    store<u64>(ptr, load<u64>(ptr) & ~chosen);
  }
  if (presentCount(entryPtr) == 512) normalise(entryPtr);
  return taken;
}

/** Makes the keys that `masks` choose absent. */
export function ltClearMasked(entryPtr: usize, masks: usize): void {
  if (presentCount(entryPtr) == 0) return;
  if ((planesOf(entryPtr) & 1) == 0) addPlane(entryPtr, 0);
  let cleared: u32 = 0;
  let accessed: u32 = 0;
  for (let word = 0; word < 8; word++) {
    const ptr = wordPtr(entryPtr, 0, word);
    const value = load<u64>(ptr);
    const gone = value & load<u64>(masks + ((<usize>word) << 3));
    cleared += <u32>popcnt(gone);
    accessed += <u32>popcnt(gone & valueWord(entryPtr, COUNTED_SHIFT, word));
    store<u64>(ptr, value ^ gone);
  }
  store<u32>(entryPtr, load<u32>(entryPtr, 8) - cleared - (accessed << 10), 8);
  if (presentCount(entryPtr) == 0) emptyLeafTable(entryPtr);
}

/** As ltModify() of a whole table that clears the counted bit where it is set: the entry alone is touched. */
export function ltClearCounted(entryPtr: usize): u32 {
  const counts = load<u32>(entryPtr, 8);
  const counted = (counts >> 10) & 0x3ff;
  if (counted == 0) return 0;
  const desc = load<u32>(entryPtr) & ~((COUNTED_BIT << 8) | (COUNTED_BIT << 16));
  store<u32>(entryPtr, desc);
  store<u32>(entryPtr, counts & ~(0x3ff << 10), 8);
  if (((desc >> 16) & 255) == 0 && desc >> 24 != 0) forgetPlanes(entryPtr);
  return counted;
}

/** ltClearCounted() of the leaf tables from the entry at `first` on, up to `end` or an entry that is none. Returns which. */
export function ltAgeRun(first: usize, end: usize): usize {
  let keys: u64 = 0;
  let at = first;
  for (; at < end; at += ENTRY_BYTES) {
    if ((load<u32>(at) & 7) != LT) break;
    keys += <u64>((load<u32>(at, 8) >> 10) & 0x3ff);
  }
  runHits = keys;
  if (keys == 0) return at;
  for (let entry = first; entry < at; entry += ENTRY_BYTES) ltClearCounted(entry);
  return at;
}

/** First index after `from` (up to `to`) whose key differs in flags from the key at `from`. */
export function ltRunEnd(entryPtr: usize, from: i32, to: i32): i32 {
  const desc = load<u32>(entryPtr);
  const planes = (desc >> 16) & 255;
  if (planes == 0) return to;
  const value = ltFlags(entryPtr, from);
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    let differs: u64 = 0;
    const presentWord = valueWord(entryPtr, 0, word);
    if (value & 1) {
      differs = ~presentWord;
      for (let bit: u32 = 1; bit < 8; bit++) {
        if (((planes >> bit) & 1) == 0) continue;
        const plane = load<u64>(wordPtr(entryPtr, bit, word));
        differs |= (value >> bit) & 1 ? ~plane : plane;
      }
    } else {
      differs = presentWord;
    }
    differs &= wordMask(word, from, to);
    if (differs != 0) return (word << 6) + <i32>ctz(differs);
  }
  return to;
}
