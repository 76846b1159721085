// How long does it take to convert a guest_memfd guest of 24 TiB to private, in chunks of 2 MiB in random order?
//
// End to end: each conversion is a KVM_SET_MEMORY_ATTRIBUTES through the API, which zaps, stores and ends; every 64th
// chunk is mapped before, so that there is something to zap.

import { api } from './peers/eptsim.ts';
import { type BenchContext, type Row, row } from './rows.ts';
import { GIB, hash, MIB, PAGE, SEED, TIB } from './workloads.ts';

const CHUNK = 2 * MIB;
const SLOT_BYTES = 4 * TIB;
const HVA = 2 ** 46;

export default async function convert({ quick, say }: BenchContext): Promise<Row[]> {
  const bytes = quick ? 64 * GIB : 24 * TIB;
  const chunks = bytes / CHUNK;
  const vm = api.createVmSync({ memory: bytes, type: 'sw-protected' });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'shmem' });
  vm.host.access({ hva: HVA, length: bytes, write: true });
  for (let slot = 0; slot * SLOT_BYTES < bytes; slot++) {
    const at = slot * SLOT_BYTES;
    const size = Math.min(SLOT_BYTES, bytes - at);
    const file = vm.createGuestMemfd({ size });
    const place = { guestPhysAddr: at, memorySize: size, userspaceAddr: HVA + at };
    vm.setUserMemoryRegion2({ slot, flags: 4, ...place, guestMemfd: file.fd, guestMemfdOffset: 0 });
  }
  for (let chunk = 0; chunk < chunks; chunk += 64) vm.vcpus[0].access({ gpa: chunk * CHUNK, kind: 'write', count: 4 });

  // Random order: Fisher-Yates with the seeded hash.
  const order = Uint32Array.from({ length: chunks }, (_, index) => index);
  for (let at = chunks - 1; at > 0; at--) {
    const other = hash(at, SEED) % (at + 1);
    const kept = order[at];
    order[at] = order[other];
    order[other] = kept;
  }
  const start = performance.now();
  for (let at = 0; at < chunks; at++) {
    vm.setMemoryAttributes({ address: order[at] * CHUNK, size: CHUNK, attributes: 8 });
  }
  const seconds = (performance.now() - start) / 1000;
  const zapped = vm.stat('leafs_zapped_direct_4k');
  if (zapped !== Math.ceil(chunks / 64) * 4) throw new Error(`convert: ${zapped} leaves were zapped`);
  for (let at = 0; at < chunks; at += Math.ceil(chunks / 1000)) {
    if (vm.attributesOf((order[at] * CHUNK) / PAGE) !== 8)
      throw new Error(`convert: chunk ${order[at]} is not private`);
  }
  const note = `${chunks} conversions in ${seconds.toFixed(1)} s, memory ${(vm.memoryUsed / MIB).toFixed(0)} MiB`;
  say(`convert: ${note}`);
  const nsPerOperation = (seconds * 1e9) / chunks;
  return [
    row({
      question: 'convert',
      guestBytes: bytes,
      operation: 'convert-2MiB',
      contender: 'eptsim',
      order: 'random',
      operations: chunks,
      nsPerOperation,
      nsPerPage: nsPerOperation / 512,
      perSecond: chunks / seconds,
      note,
    }),
  ];
}
