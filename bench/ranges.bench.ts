// How much faster than the kernel's own page tables does the engine zap and age a guest, whole and in ranges?
//
// How a row is taken is measure.ts's.

import { freemem } from 'node:os';
import { type Case, measure } from './measure.ts';
import { Arrays } from './peers/arrays.ts';
import type { Contender } from './peers/contender.ts';
import { Eptsim, EptsimByCall } from './peers/eptsim.ts';
import { compileLayoutA, LayoutA, WasmA } from './peers/layout-a-wasm.ts';
import { MapOfSptes } from './peers/map.ts';
import { Native, type NativeProcess, startNative } from './peers/native.ts';
import { Roaring } from './peers/roaring.ts';
import type { BenchContext, Goal, Row } from './rows.ts';
import { GIB, type Guest, type Leaves, MIB, PAGE, RANGES, TIB } from './workloads.ts';

/** Native nested must reach this part of the bandwidth measured beside it, or it is a straw man and the bench fails. */
const LEAST_BANDWIDTH = 0.5;

/**
 * Whether there are fewer rounds and only random ranges. Each turn begins with layout A's tables made anew, entry by entry:
 * of half of 1 TiB that takes each of four contenders 3 s.
 */
function isShort(guest: Guest, quick: boolean): boolean {
  return quick || (guest.bytes >= TIB && guest.leaves === '4k' && guest.density !== 'full');
}

function casesOf(guest: Guest, quick: boolean): Case[] {
  const question = 'ranges';
  const orders = isShort(guest, quick) ? (['random'] as const) : (['random', 'sequential'] as const);
  const cases: Case[] = (['zap', 'age'] as const).map((walk) => ({
    question,
    guest,
    operation: `${walk}-whole`,
    walk,
    npages: 0,
    count: 1,
    order: 'sequential',
  }));
  for (const [operation, bytes, most] of RANGES) {
    const count = Math.max(1, Math.min(quick ? most / 10 : most, guest.bytes / bytes / 2));
    for (const order of orders) {
      cases.push({ question, guest, operation, walk: 'zap', npages: bytes / PAGE, count, order });
    }
  }
  return cases;
}

function goalOf({ guest, operation, order }: Case, contender: string): Goal | null {
  if (guest.leaves !== '4k' || guest.density === 'fragmented') return null;
  if (contender === 'wasm layout A tdp_iter') {
    return operation === 'zap-whole' ? 'same algorithm, Wasm A vs native A (tdp_iter)' : null;
  }
  if (contender !== 'eptsim') return null;
  const isHalf = guest.density === 'half';
  // The goals for whole zaps name their guests; the others are for all.
  const isLarge = guest.bytes === 64 * GIB || guest.bytes === 256 * GIB;
  if (operation === 'zap-whole' && isHalf) return isLarge ? 'zap whole guest, 64 and 256 GiB 4K, 50% random' : null;
  if (operation === 'zap-whole') return guest.bytes === 64 * GIB ? 'zap whole guest, 64 GiB 4K, uniform' : null;
  if (operation === 'age-whole') return isHalf ? 'age whole guest, 50% random' : null;
  if (operation === 'zap-1GiB') return 'zap 1 GiB ranges';
  // The goals for small ranges come from ranges at random places: 242 ns for 64 KiB, where those in order take 74.
  if (order === 'sequential') return null;
  if (operation === 'zap-2MiB') return 'zap 2 MiB ranges';
  if (operation === 'zap-64KiB') return 'zap 64 KiB ranges';
  if (operation === 'zap-4KiB') return 'zap 4 KiB random';
  return null;
}

function guestsOf(quick: boolean): Guest[] {
  const guest = (bytes: number, density: Guest['density'], leaves: Leaves = '4k'): Guest => ({
    bytes,
    density,
    leaves,
  });
  if (quick) return [guest(GIB, 'full'), guest(GIB, 'half'), guest(4 * GIB, 'half', 'mixed')];
  return [
    ...[4, 64, 256].flatMap((gib) => [guest(gib * GIB, 'full'), guest(gib * GIB, 'half')]),
    guest(64 * GIB, 'fragmented'),
    guest(64 * GIB, 'half', 'mixed'),
    guest(TIB, 'full'),
    guest(TIB, 'half'),
    guest(TIB, 'half', '2m'),
  ];
}

/** The sizes of the guests, in bytes, each once. */
export function sizesOf(quick: boolean): number[] {
  return [...new Set(guestsOf(quick).map(({ bytes }) => bytes))].sort((a, b) => a - b);
}

export default async function ranges(context: BenchContext): Promise<Row[]> {
  const tables = new LayoutA(await compileLayoutA());
  const { process, peers: natives } = startNative(context);
  const contenders: Contender[] = [
    ...natives,
    new WasmA(tables, 'tdp_iter'),
    new WasmA(tables, 'nested'),
    new Arrays(),
    new MapOfSptes(),
    new Roaring(),
    new Eptsim(),
    new EptsimByCall(),
  ];
  const rows: Row[] = [];
  try {
    for (const guest of guestsOf(context.quick)) {
      if (context.guestBytes !== undefined && guest.bytes !== context.guestBytes) continue;
      rows.push(...(await measureGuest(guest, contenders, process, context)));
    }
  } finally {
    process?.quit();
  }
  return rows;
}

/** Without those whose page tables, 8 bytes an entry, this machine has no memory for: C's first, then WebAssembly's beside them. */
function contendersThatFit(guest: Guest, all: readonly Contender[], say: (line: string) => void): Contender[] {
  const entries = guest.bytes / PAGE / (guest.leaves === '2m' ? 512 : 1);
  const needed = entries * 8 * 1.1;
  let free = freemem();
  let contenders = [...all];
  for (const [kind, name] of [
    [Native, 'C'],
    [WasmA, 'WebAssembly'],
  ] as const) {
    if (!contenders.some((one) => one instanceof kind)) continue;
    if (needed <= free) {
      free -= needed;
      continue;
    }
    const [wanted, left] = [needed, free].map((bytes) => (bytes / GIB).toFixed(1));
    say(`layout A in ${name} needs ${wanted} GiB for this guest and ${left} are free: its rows are left out`);
    contenders = contenders.filter((one) => !(one instanceof kind));
  }
  return contenders;
}

async function measureGuest(
  guest: Guest,
  all: readonly Contender[],
  process: NativeProcess | undefined,
  context: BenchContext,
): Promise<Row[]> {
  context.say(`${guest.bytes / GIB} GiB, ${guest.density}, ${guest.leaves}`);
  const contenders = contendersThatFit(guest, all, context.say);
  for (const contender of contenders) if (contender.takes(guest, 'zap', 1)) await contender.build(guest);
  const rows: Row[] = [];
  for (const found of casesOf(guest, context.quick)) {
    const isBrief = isShort(guest, context.quick);
    const rounds = isBrief ? 3 : guest.bytes >= 64 * GIB ? 7 : 9;
    const measured = await measure(found, contenders, rounds, isBrief ? 1 : 2, goalOf);
    rows.push(...measured);
    if (process !== undefined && found.operation === 'zap-whole' && guest.leaves === '4k' && guest.density === 'full') {
      await checkNoStrawMan(process, guest, measured, context);
    }
  }
  for (const contender of contenders) await contender.close();
  return rows;
}

/** Native nested moves 8 bytes a page; the bandwidth is measured in the same process, right after it. */
async function checkNoStrawMan(
  process: NativeProcess,
  guest: Guest,
  rows: Row[],
  context: BenchContext,
): Promise<void> {
  const nested = rows.find(({ contender }) => contender === 'native nested');
  if (nested === undefined) return;
  const reached = 8 / (nested.nsPerPage! / 1e9);
  const bandwidth = await process.bandwidth(Math.min((guest.bytes / PAGE) * 8, 512 * MIB));
  const part = reached / bandwidth;
  nested.note = `${(reached / 1e9).toFixed(1)} GB/s, ${Math.round(part * 100)}% of ${(bandwidth / 1e9).toFixed(1)} GB/s`;
  context.say(`native nested: ${nested.note}`);
  // A small guest's 1,000 reads weigh too much to say anything of its loop; a quick run is too short.
  if (part < LEAST_BANDWIDTH && guest.bytes >= 64 * GIB && !context.quick) {
    throw new Error(`native nested reaches only ${nested.note}: at least ${LEAST_BANDWIDTH * 100}% is wanted`);
  }
}
