// The memory map: written through Wasm, read through the views; each region after the one before.

import { describe, expect, test } from 'vitest';
import { COUNTER_NAMES, type EngineExports, OPTIONS } from '../../src/engine/exports.ts';
import { layout } from '../../src/engine/layout.ts';
import { compileEngineSync, instantiate } from '../../src/engine/load.ts';
import { isDebugBuild, PAGE } from '../support/make-vm.ts';

const BYTES = 128 * 2 ** 20;

function engine(ringRecords = 0): {
  wasm: EngineExports;
  buffer: ArrayBuffer;
  words: Uint32Array;
  doubles: Float64Array;
} {
  const { exports: wasm, memory } = instantiate(compileEngineSync(undefined, isDebugBuild), BYTES, () => undefined);
  const buffer = memory.buffer as ArrayBuffer;
  expect(wasm.vmCreate(BYTES, 1, 0, 1, 48, 48, 2, 1024, ringRecords)).toBe(0);
  return { wasm, buffer, words: new Uint32Array(buffer), doubles: new Float64Array(buffer) };
}

/** Regions in the order of a snapshot. */
function regions({ wasm, doubles }: ReturnType<typeof engine>): { start: number; bytes: number }[] {
  const found = [];
  const result = layout.CONTROL_AT_RESULT0 >>> 3;
  for (let index = 0; wasm.snapshotRegion(index) === 1; index++) {
    found.push({ start: doubles[result], bytes: doubles[result + 1] });
  }
  return found;
}

describe('the regions', () => {
  test('ascend, do not overlap and lie in the memory', () => {
    const one = engine(1000);
    one.wasm.abiHostMmap(0, 0, 0x1000, 2 ** 20, 0, 3);
    one.wasm.abiSetMemoryRegion(1, 0, 0, 0, 0, 2 ** 20, 0, 0, 0x1000, -1, 0, 0, 0);
    one.wasm.abiAccess(0, 0, 1, 0, 1, 1);
    const all = regions(one);
    expect(all.length).toBeGreaterThan(15);
    let end = 0;
    for (const { start, bytes } of all) {
      // The record of a fault that is carried through at once ends its table.
      expect(start, `${start}`).toBeGreaterThanOrEqual(end);
      end = start + bytes;
    }
    expect(end).toBeLessThanOrEqual(BYTES);
  });

  test('hold only what is used', () => {
    const used = (one: ReturnType<typeof engine>) => regions(one).reduce((sum, { bytes }) => sum + bytes, 0);
    const one = engine();
    const before = used(one);
    expect(before).toBeLessThan(16 * 1024);
    one.wasm.abiHostMmap(0, 0, 0x1000, 2 ** 20, 0, 3);
    expect(used(one) - before).toBe(40);
  });

  test('a memory that cannot hold them is refused', () => {
    const { exports: wasm, memory } = instantiate(compileEngineSync(undefined, isDebugBuild), 2 ** 24, () => undefined);
    expect(wasm.vmCreate(memory.buffer.byteLength, 0, 0, 0, 52, 48, 1, 16, 2 ** 20)).toBe(-5000);
  });
});

describe('what Wasm writes, the views read', () => {
  test('counters, by name', () => {
    const { wasm, words } = engine();
    const at = layout.COUNTERS_BASE >>> 2;
    expect(COUNTER_NAMES.length).toBeLessThanOrEqual(layout.COUNTER_COUNT);
    wasm.abiHostMmap(0, 0, 0x1000, 2 ** 20, 0, 3);
    wasm.abiSetMemoryRegion(1, 0, 0, 0, 0, 2 ** 20, 0, 0, 0x1000, -1, 0, 0, 0);
    for (let gfn = 0; gfn < 3; gfn++) expect(wasm.abiAccess(0, gfn, 1, 0, 1, 1)).toBe(0);
    for (const [index, name] of COUNTER_NAMES.entries()) {
      expect(words[at + index * 2] + words[at + index * 2 + 1] * 2 ** 32, name).toBe(wasm.abiCounter(index));
    }
    expect(words[at + COUNTER_NAMES.indexOf('pages_4k') * 2]).toBe(3);
    expect(words[at + COUNTER_NAMES.indexOf('pf_taken') * 2]).toBe(3);
  });

  test('roots', () => {
    const { wasm, words } = engine();
    expect(words[layout.CONTROL_AT_ROOT_HIGH_WATER >>> 2]).toBe(0);
    expect(wasm.vcpuRun(0)).toBe(0);
    expect(words[layout.CONTROL_AT_ROOT_HIGH_WATER >>> 2]).toBe(1);
    const root = layout.ROOTS_BASE >>> 2;
    // used, kind, address space, invalid, sequence, users
    expect([...words.subarray(root + 4, root + 10)]).toEqual([1, 0, 0, 0, 1, 1]);
    expect(wasm.vcpuRun(1)).toBe(0);
    expect(words[root + 9]).toBe(2);
  });

  test('guest_memfd files', () => {
    const { wasm, words } = engine();
    expect(wasm.abiGmemCreate(4096, 5, 0, 0, 42)).toBe(0);
    expect(words[layout.CONTROL_AT_GMEM_HIGH_WATER >>> 2]).toBe(1);
    const at = layout.GMEM_BASE >>> 2;
    // used, open, fd, serial, size in two halves
    expect([...words.subarray(at, at + 6)]).toEqual([1, 1, 42, 1, 4096, 5]);
    expect(wasm.abiGmemCreate(4096, 0, 0, 0, 43)).toBe(0);
    expect(words[at + layout.GMEM_BYTES / 4 + 2]).toBe(43);
  });

  test('the invalidation window', () => {
    const { wasm, words } = engine();
    const u32 = (address: number) => words[address >>> 2];
    wasm.abiHostMmap(0, 0, 0x1000, 2 ** 20, 0, 3);
    wasm.abiSetMemoryRegion(1, 0, 0, 16 * PAGE, 0, 2 ** 20, 0, 0, 0x1000, -1, 0, 0, 0);
    expect(wasm.abiInvalidateRangeStart(PAGE, 0x1000, 3 * PAGE, 0x1000, 1)).toBe(1);
    expect(u32(layout.CONTROL_AT_INV_IN_PROGRESS)).toBe(1);
    expect([u32(layout.CONTROL_AT_INV_START), u32(layout.CONTROL_AT_INV_END)]).toEqual([17, 19]);
    const seq = u32(layout.CONTROL_AT_INV_SEQ);
    expect(wasm.abiInvalidateRangeEnd(PAGE, 0x1000, 3 * PAGE, 0x1000)).toBe(0);
    expect(u32(layout.CONTROL_AT_INV_IN_PROGRESS)).toBe(0);
    expect(u32(layout.CONTROL_AT_INV_SEQ)).toBe(seq + 1);
  });

  test('the trace ring', () => {
    const { wasm, words } = engine(16);
    wasm.vmSetOption(OPTIONS.trace, 1);
    wasm.abiHostMmap(0, 0, 0x1000, 2 ** 20, 0, 3);
    wasm.abiSetMemoryRegion(1, 0, 0, 0, 0, 2 ** 20, 0, 0, 0x1000, -1, 0, 0, 0);
    const count = words[layout.CONTROL_AT_TRACE_COUNT >>> 2];
    expect(count).toBeGreaterThan(0);
    expect(count).toBeLessThanOrEqual(16);
    // Each record begins with its type.
    expect(words[layout.RING_BASE >>> 2] & 0xff).toBeGreaterThan(0);
  });

  test('the state a VM dies in', () => {
    const { wasm, words } = engine();
    expect(words[layout.CONTROL_AT_DESTROYED >>> 2]).toBe(0);
    wasm.abiDestroy();
    expect(words[layout.CONTROL_AT_DESTROYED >>> 2]).toBe(2);
    expect(wasm.gate(0)).toBe(-5003);
  });
});

test.each([false, true])('the layout is the same in both builds (debug %s)', (debug) => {
  const module = compileEngineSync(undefined, debug);
  const { exports } = new WebAssembly.Instance(module, {
    env: { memory: new WebAssembly.Memory({ initial: 1 }), pause: () => undefined, abort: () => undefined },
  });
  expect((exports.LAYOUT_HASH as WebAssembly.Global).value >>> 0).toBe(layout.LAYOUT_HASH);
});

test('an engine of another build is refused', () => {
  // The smallest module there is: it exports nothing.
  const module = new WebAssembly.Module(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]));
  expect(() => instantiate(module, BYTES, () => undefined)).toThrow('not built with this version of eptsim');
});
