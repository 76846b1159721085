// CHUNKS entries: a GiB of leaf tables that are full of like keys or empty, a bit for each.

import { allocatePlane } from './blocks';
import {
  blockPtr,
  CHUNKS_OF_4K,
  flagsOf,
  indexAt,
  presentCount,
  setUniform,
  tagOf,
  UNIFORM,
  UNIFORM_OF_4K,
} from './entry';
import { releasePlanes, wordMask } from './leaf_table';

/** Whether keys are zapped in an entry of level 3 by whole leaf tables: UNIFORM with 4K keys, or what became of it. */
export function takesChunks(entryPtr: usize): bool {
  const kind = load<u32>(entryPtr) & 127;
  return kind == CHUNKS_OF_4K || (kind == UNIFORM_OF_4K && (load<u32>(entryPtr) & 0x100) != 0);
}

function chunksPtr(entryPtr: usize): usize {
  return blockPtr(load<u32>(entryPtr, 4));
}

/** The flags of the keys of chunk `index` of CHUNKS; 0 if it is empty. */
export function chunkFlags(entryPtr: usize, index: u32): u32 {
  const word = load<u64>(chunksPtr(entryPtr) + ((<usize>(index >> 6)) << 3));
  return (word >> (index & 63)) & 1 ? flagsOf(entryPtr) : 0;
}

/** First chunk after `index` that is not as full or as empty as it; 512 if all are. */
export function chunkRunEnd(entryPtr: usize, index: u32): u32 {
  const isFull = chunkFlags(entryPtr, index) != 0;
  index++;
  while (index < 512 && (chunkFlags(entryPtr, index) != 0) == isFull) index++;
  return index;
}

/** How many of the chunks [from, to) are full. */
function chunksFull(entryPtr: usize, from: i32, to: i32): u32 {
  if (from >= to) return 0;
  if (from == 0 && to == 512) return presentCount(entryPtr);
  let full: u32 = 0;
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    full += <u32>popcnt(load<u64>(chunksPtr(entryPtr) + ((<usize>word) << 3)) & wordMask(word, from, to));
  }
  return full;
}

/** Present keys of [start, end), a range within CHUNKS. */
export function chunksCount(entryPtr: usize, start: u64, end: u64): u64 {
  const from = <i32>indexAt(start, 2);
  const to = <i32>indexAt(end - 1, 2) + 1;
  let keys = (<u64>chunksFull(entryPtr, from, to)) << 9;
  if (chunkFlags(entryPtr, from) != 0) keys -= start & 511;
  if (chunkFlags(entryPtr, to - 1) != 0) keys -= -end & 511;
  return keys;
}

/**
 * Empties the chunks [from, to) of an entry that takesChunks(). Returns how many were full. Requires: a block, which what is
 * reserved for a boundary path holds.
 */
export function chunksClear(entryPtr: usize, from: i32, to: i32): u32 {
  if (tagOf(entryPtr) == UNIFORM) {
    const block = allocatePlane();
    memory.fill(blockPtr(block), 255, 64);
    store<u32>(entryPtr, (load<u32>(entryPtr) & 0xff00) | CHUNKS_OF_4K | (1 << 16) | (1 << 24));
    store<u32>(entryPtr, block, 4);
    store<u64>(entryPtr, 512, 8);
  }
  let cleared: u32 = 0;
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    const ptr = chunksPtr(entryPtr) + ((<usize>word) << 3);
    const gone = load<u64>(ptr) & wordMask(word, from, to);
    cleared += <u32>popcnt(gone);
    store<u64>(ptr, load<u64>(ptr) ^ gone);
  }
  store<u32>(entryPtr, load<u32>(entryPtr, 8) - cleared, 8);
  if (presentCount(entryPtr) == 0) {
    releasePlanes(entryPtr);
    setUniform(entryPtr, 3, 1, 0);
  }
  return cleared;
}

/** As chunksClear() of one chunk of CHUNKS. */
export function chunkClear(entryPtr: usize, index: u32): u32 {
  const ptr = chunksPtr(entryPtr) + ((<usize>(index >> 6)) << 3);
  const word = load<u64>(ptr);
  const was = (word >> (index & 63)) & 1;
  // The last full one ends them.
  if (presentCount(entryPtr) == 1) return chunksClear(entryPtr, <i32>index, <i32>index + 1);
  store<u64>(ptr, word ^ (was << (index & 63)));
  store<u32>(entryPtr, load<u32>(entryPtr, 8) - <u32>was, 8);
  return <u32>was;
}

/** Gives every key of CHUNKS `flags`. */
export function chunksModify(entryPtr: usize, flags: u32): void {
  store<u32>(entryPtr, (load<u32>(entryPtr) & ~0xff00) | (flags << 8));
}
