// Holds the reference model against recordings of real KVM: a model that is wrong would only teach the engine its mistakes.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { ModelVm } from './model-vm.ts';
import type { Leaf, Root } from './page-tables.ts';
import { pagesOf, Table } from './page-tables.ts';
import { Replay } from './recording.ts';

const FOLDER = join(import.meta.dirname, '../recorded');
// biome-ignore lint/suspicious/noExplicitAny: lines of a recording
const read = (name: string): any[] =>
  gunzipSync(readFileSync(join(FOLDER, `${name}.jsonl.gz`)))
    .toString()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

const RECORDINGS = [
  ...['a01_anon4k_dontneed', 'a02_anon4k_munmap_mremap_mprotect', 'a03_unaligned_slots', 'a04_alias_slots'],
  ...['a06_shmem', 'a07_readonly_slot', 'b01_thp_dontneed', 'b02_hugetlb2m', 'b03_hugetlb1g', 'b04_dirtylog_thp'],
  ...['b06_dirtylog_thp_manual_initset', 'b08_dirtylog_noeager', 'b09_dirtylog_hugetlb2m_manual_initset_noeager'],
  ...['b10_thp_unaligned_slot', 'b11_collapse', 'c01_swp_convert_4k', 'c02_swp_gmem_punch'],
  ...['c03_swp_dontneed_private', 'c04_swp_gmem_close', 'c05_swp_hugepage_mixed', 'c07_swp_guest', 'c08_swp_multislot'],
  ...['c10_swp_1g_mixed', 'd01_slots_zapall_4k', 'd02_slots_zapslot_4k', 'd05_slots_swp', 'd06_errors_default'],
  ...['d07_errors_swp', 'd08_smm_two_as', 'd10_prefault_obsolete_root', 'e02_page_idle_thp', 'e04_alias_aging'],
  ...['f01_nx_huge_pages', 'f02_nx_swp', 'g01_teardown_mixed', 'g02_teardown_empty', 'g03_high_gpa'],
  ...['h_def_seed01', 'h_swp_seed01', 'k_def_seed02', 'k_swp_seed01', 'k_swp_seed02'],
];

describe('the reference model equals the recorded KVM', () => {
  test.each(RECORDINGS)('%s', (name) => {
    const [header, ...ops] = read(name);
    expect(new Replay(header).run(ops)).toEqual([]);
  });
});

const LEAF: Leaf = {
  kind: 'leaf',
  pfn: 0,
  writable: true,
  executable: true,
  accessed: false,
  dirty: true,
  hostWritable: true,
  mmuWritable: true,
  private: false,
  pending: false,
};

/** Puts a leaf into the tables without telling anyone. */
function plant(root: Root, level: number, gfn: number, leaf: Leaf): void {
  let table = root.table;
  for (let at = root.level; at > level; at--) {
    const index = root.index(gfn, at);
    const entry = table.entries[index];
    if (entry?.kind === 'table') table = entry.table;
    else {
      const below = new Table(at - 1, Math.floor(gfn / pagesOf(at)) * pagesOf(at));
      table.entries[index] = { kind: 'table', table: below };
      table = below;
    }
  }
  table.entries[root.index(gfn, level)] = leaf;
}

describe('the reference model equals the unit vectors', () => {
  test('every kvm_gfn_range call changes the leafs that KVM changed, in its order', () => {
    const wrong: string[] = [];
    const vectors = read('gfn-range-calls');
    for (const vector of vectors) {
      const vm = new ModelVm({
        type: vector.vm_type === 1 ? 'sw-protected' : 'default',
        kernel: 'linux-6.12',
        maxphyaddr: 40,
      });
      if (vector.as_id === 1) vm.vcpus[0]?.enterSmm();
      vm.vcpus[0]?.run();
      vm.setUserMemoryRegion({
        slot: vector.as_id * 65536 + vector.slot,
        guestPhysAddr: vector.start * 4096,
        memorySize: (vector.end - vector.start) * 4096,
        userspaceAddr: 0x100000000000,
      });
      const root = vm.roots.find((one) => one.asId === vector.as_id) as Root;
      for (const [level, gfn, count, flags] of vector.before) {
        const accessed = (Number.parseInt(flags.slice(-3), 16) & 0x20) !== 0;
        for (let k = 0; k < count; k++) plant(root, level, gfn + k * pagesOf(level), { ...LEAF, accessed });
      }
      vm.trace();
      const range = {
        slot: vector.slot,
        asId: vector.as_id,
        start: vector.start,
        end: vector.end,
        attrFilter: vector.attr_filter,
        mayBlock: vector.may_block === 1,
      };
      const isAge = vector.fn === 'age_gfn';
      const ret = isAge ? vm.ageGfn(range) : vm.unmapGfnRange(range);
      const changed = vm.trace().filter((event) => event.name === 'spte_changed');
      const recorded: string[] = [];
      for (const [level, gfn, count] of vector.changed) {
        for (let k = 0; k < count; k++) recorded.push(`${level} ${gfn + k * pagesOf(level)}`);
      }
      const actual = changed.map((event) => `${event.level} ${event.gfn}`);
      // The leafs of an age vector lack the hardware's A bit: what it says of the return value can't be asserted.
      if (!isAge && (actual.join() !== recorded.join() || ret !== (vector.ret === 1))) wrong.push(vector.src);
      if (isAge && actual.some((change) => !recorded.includes(change))) wrong.push(vector.src);
    }
    expect(wrong).toEqual([]);
    expect(vectors.length).toBe(4358);
  });
});
