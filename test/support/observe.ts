// What a call did, in words and numbers that a test can state exactly.

import type { Vm } from '../../src/index.ts';
import type { AnyEvent } from './events.ts';
import { SLOT_HVA } from './make-vm.ts';

/** Where makeVm() puts the host memory of slot `id` that starts at gfn 0 (or at a multiple of 1G). */
export const hvaOfSlot = (id: number): number => SLOT_HVA + id * 0x10000000000;

/** What `call` adds to the counters; a counter that it leaves alone is absent. */
export function countersMoved(vm: Vm, call: () => unknown): Record<string, number> {
  const before = vm.stats();
  call();
  const moved = Object.entries(vm.stats()).map(([name, value]) => [name, value - (before[name] ?? 0)] as const);
  return Object.fromEntries(moved.filter(([, by]) => by !== 0));
}

/** The named counters of what `call` adds, 0 where it leaves them alone. */
export function counted<N extends string>(vm: Vm, names: readonly N[], call: () => unknown): Record<N, number> {
  const moved = countersMoved(vm, call);
  return Object.fromEntries(names.map((name) => [name, moved[name] ?? 0])) as Record<N, number>;
}

const LEVEL = ['', '4K', '2M', '1G'];

/** The leaves of one tree as runs: `0..7 4K` maps gfns 0 to 7 by 4K leaves. */
export function leavesOf(vm: Vm, root: 'direct' | 'mirror' = 'direct', asId = 0): string[] {
  const runs: { first: number; end: number; level: number }[] = [];
  for (const { gfn, count, level } of vm.leafs({ root, asId })) {
    const last = runs.at(-1);
    const end = gfn + count * 512 ** (level - 1);
    if (last && last.level === level && last.end === gfn) last.end = end;
    else runs.push({ first: gfn, end, level });
  }
  return runs.map(({ first, end, level }) => `${first}..${end - 1} ${LEVEL[level]}`);
}

/** How many leaves of each level a VM has: 4K, 2M, 1G. */
export function leafCounts(vm: Vm): [number, number, number] {
  const { pages_4k: small, pages_2m: huge, pages_1g: giant } = vm.stats();
  return [small, huge, giant];
}

/**
 * The errno name with which KVM refuses a call, or 'none'.
 * @throws if the refusal changed anything in the VM
 */
export function refusalOf(vm: Vm, call: () => unknown): string {
  const before = vm.snapshot();
  try {
    call();
    return 'none';
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === undefined) throw error;
    const after = vm.snapshot();
    if (Buffer.compare(before, after) !== 0) throw new Error(`${code} changed the VM`);
    return code;
  }
}

/** Drains the trace; the events of the given names, in order. */
export function eventsOf(vm: Vm, ...names: string[]): AnyEvent[] {
  return (vm.trace() as unknown as AnyEvent[]).filter(({ name }) => names.includes(name));
}
