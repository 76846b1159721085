// How many trace records a second are emitted by the engine and read in JavaScript?
//
// A guest with every second page mapped is zapped in pieces, and each piece's records are read before the next: each page is
// a run of its own and makes one 16-byte record, and a ring that is read so can stay in the cache. JavaScript reads all four
// words of every record. The peers write the same records as they zap; C's are read in C, those of layout A in WebAssembly in
// JavaScript too. A uniform guest is the other end: one record stands for up to 2^32 entries.

import type { Read } from './peers/contender.ts';
import { api } from './peers/eptsim.ts';
import { compileLayoutA, LayoutA, WasmA } from './peers/layout-a-wasm.ts';
import { startNative } from './peers/native.ts';
import { type BenchContext, median, type Row, ratiosOf, row, spreadOf } from './rows.ts';
import { GIB, PAGE } from './workloads.ts';

const HVA = 2 ** 40;
const SPTE_CHANGED = 1;
/** Pages zapped before their records are read. */
const PIECE = 65_536;
/** What a page's leaf is, as a record has it: present, W, A, D, HOST_WRITABLE, MMU_WRITABLE. */
const LEAF_CODE = 4 | 0b11111000;

/** Records that one call of readBlock() reads. */
const BLOCK = 1024;

/** Adds the records of `words` from `at` to `end` to `found`; where the next one begins. */
function readBlock(words: Uint32Array, at: number, end: number, found: Read): number {
  let sum = found.sum | 0;
  let changes = found.changes | 0;
  while (at < end) {
    const head = words[at] | 0;
    if ((head & 255) === SPTE_CHANGED) {
      sum = (sum + (words[at + 2] | 0) + (words[at + 1] >>> 16) + (head >>> 16)) | 0;
      changes = (changes + (words[at + 3] | 0)) | 0;
      at += 4;
    } else {
      at += 4 + ((head >> 8) & 255) * 4;
    }
  }
  found.sum = sum;
  found.changes = changes;
  return at;
}

/**
 * Reads all records in blocks. In one loop over all of them V8 replaces the code while it runs and may never compile the
 * function whole: 6 ns a record where the whole function takes 2.6, from one process to the next.
 */
function readRecords(words: Uint32Array, records: number): Read {
  const found = { sum: 0, changes: 0 };
  const end = records * 4;
  for (let at = 0; at < end; ) at = readBlock(words, at, Math.min(at + BLOCK * 4, end), found);
  return found;
}

export default async function trace({ quick, native, say }: BenchContext): Promise<Row[]> {
  const bytes = (quick ? 1 : 8) * GIB;
  const pages = bytes / PAGE;
  const vm = api.createVmSync({ memory: bytes, traceRecords: PIECE });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'shmem' });
  vm.host.access({ hva: HVA, length: bytes, write: true });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA });
  const vcpu = vm.vcpus[0];
  // The ring is as large as the zap needs: what the faults emit beyond that is dropped, and counted.
  const exit = vcpu.access({ gpa: 0, kind: 'write', stride: 2 * PAGE, count: pages / 2 });
  if (exit.done !== pages / 2) throw new Error(`trace: ${exit.done} pages were touched`);
  vm.readTrace(() => undefined);
  const snapshot = vm.snapshot();

  const { process, peers: natives } = startNative({ native, say });
  const peers = [...natives, new WasmA(new LayoutA(await compileLayoutA()), 'tdp_iter')];
  const emits: number[] = [];
  const contenders: {
    name: string;
    trace(npages: number, read: typeof readRecords): Promise<Read & { ns: number }>;
  }[] = [
    ...peers,
    {
      name: 'eptsim',
      async trace(npages, read) {
        vm.restore(snapshot);
        let sum = 0;
        let changes = 0;
        let emitMs = 0;
        const start = performance.now();
        for (let gfn = 0; gfn < pages; gfn += npages) {
          const begun = performance.now();
          vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + npages });
          emitMs += performance.now() - begun;
          if (vm.traceDropped !== 0) throw new Error(`trace: ${vm.traceDropped} records were dropped`);
          const found = vm.readTrace(read);
          sum = (sum + found.sum) | 0;
          changes += found.changes;
        }
        const ns = (performance.now() - start) * 1e6;
        emits.push((emitMs * 1e6) / changes);
        return { ns, sum, changes };
      },
    },
  ];
  // Each leaf was there, writable for guest, host and KVM, accessed and dirty (assembly/trace.ts); it is non-present now.
  const wanted = ((pages / 2) * (pages / 2 - 1) + (pages / 2) * LEAF_CODE) | 0;
  const taken = new Map<string, number[]>(contenders.map(({ name }) => [name, []]));
  const warmUps = 3;
  try {
    for (const peer of peers) await peer.build({ bytes, density: 'full', leaves: '4k' });
    for (let round = -warmUps; round < (quick ? 5 : 15); round++) {
      for (let turn = 0; turn < contenders.length; turn++) {
        const contender = contenders[(turn + warmUps + round) % contenders.length];
        const { name } = contender;
        const { ns, sum, changes } = await contender.trace(PIECE, readRecords);
        if (changes !== pages / 2 || sum !== wanted) {
          throw new Error(
            `trace: of ${name} ${changes} changes were read, ${pages / 2} were made; their sum is ${sum}`,
          );
        }
        if (round >= 0) taken.get(name)!.push(ns / changes);
      }
    }
  } finally {
    process?.quit();
  }
  const middle = (name: string) => (taken.has(name) ? median(taken.get(name)!) : null);
  const ours = `${median(emits.slice(warmUps)).toFixed(2)} ns to zap and emit, the rest to read; nothing dropped`;
  say(`trace: ${(1e3 / middle('eptsim')!).toFixed(0)} M records/s; ${ours}`);
  const rows = [...taken].map(([contender, times]) => {
    const nsPerOperation = median(times);
    return row({
      question: 'trace',
      guestBytes: bytes,
      density: 'every second page',
      operation: 'zap-whole-traced',
      contender,
      planes: 1,
      operations: pages / 2,
      nsPerOperation,
      ...ratiosOf(nsPerOperation, middle),
      perSecond: 1e9 / nsPerOperation,
      spread: spreadOf(times),
      samples: times.length,
      goal: contender === 'eptsim' ? '16-byte trace, emitted and read by JS' : null,
      note:
        contender === 'eptsim'
          ? ours
          : `the same records, read in ${contender.startsWith('wasm') ? 'JavaScript' : 'C'}`,
    });
  });

  // Run-length: all pages alike.
  vm.restore(snapshot);
  vcpu.access({ gpa: 0, kind: 'write', size: bytes });
  vm.unmapGfnRange({ slot: 0, start: 0, end: pages });
  vcpu.access({ gpa: 0, kind: 'write', size: bytes });
  vm.readTrace(() => undefined);
  vm.unmapGfnRange({ slot: 0, start: 0, end: pages });
  const runs = vm.readTrace((_words, count) => count);
  rows.push(
    row({
      question: 'trace',
      guestBytes: bytes,
      operation: 'zap-whole-traced-runs',
      contender: 'eptsim',
      note: `${pages} changes in ${runs} records`,
    }),
  );

  // Overflow: a ring too small keeps what came first, and counts the rest.
  const tight = api.createVmSync({ memory: GIB, traceRecords: 64 });
  tight.host.mmap({ hva: HVA, length: GIB, kind: 'shmem' });
  tight.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: GIB, userspaceAddr: HVA });
  tight.readTrace(() => undefined);
  tight.vcpus[0].access({ gpa: 0, kind: 'write', stride: 2 * PAGE, count: 1000 });
  if (tight.traceDropped === 0) throw new Error('trace: a full ring dropped nothing');
  return rows;
}
