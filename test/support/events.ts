// Events of vm.trace(), or of the reference model, as lines of text that compare and read well.

export interface AnyEvent {
  readonly name: string;
  readonly [field: string]: unknown;
}
interface Meaning {
  readonly class: string;
  readonly writable: boolean;
  readonly executable: boolean;
  readonly accessed: boolean;
  readonly dirty: boolean;
  readonly hostWritable: boolean;
  readonly mmuWritable: boolean;
  readonly private: boolean;
  readonly mmioGeneration?: number;
}

const RANGE = ['slot', 'asId', 'start', 'end', 'arg', 'attrFilter', 'mayBlock', 'onlyPrivate', 'onlyShared'];
const ATTRIBUTE_RANGE = ['slot', 'asId', 'start', 'end', 'arg', 'mayBlock'];
const FIELDS: Readonly<Record<string, readonly string[]>> = {
  unmap_gfn_range: RANGE,
  age_gfn: RANGE,
  test_age_gfn: RANGE,
  set_spte_gfn: RANGE,
  unmap_gfn_range_ret: ['ret'],
  age_gfn_ret: ['ret'],
  test_age_gfn_ret: ['ret'],
  set_spte_gfn_ret: ['ret'],
  pre_attr: ATTRIBUTE_RANGE,
  post_attr: ATTRIBUTE_RANGE,
  kvm_unmap_hva_range: ['start', 'end'],
  kvm_age_hva: ['start', 'end'],
  kvm_test_age_hva: ['start', 'end'],
  inv_begin: ['inProgress', 'seq'],
  inv_add: ['start', 'end'],
  inv_end: ['seq', 'inProgress', 'start', 'end'],
  flush: [],
  flush_range: ['gfn', 'npages'],
  req: ['nr'],
  zap_leafs: ['start', 'end', 'canYield', 'flush'],
  zap_leafs_ret: ['ret'],
  zap_root: ['shared', 'level'],
  zap_all: [],
  inv_roots: [],
  zap_inv_roots: [],
  zap_all_fast: [],
  split_huge: ['slot', 'start', 'end', 'target', 'shared'],
  split_huge_page: ['gfn', 'level'],
  wrprot_slot: ['slot', 'level'],
  clear_dirty_mask: ['slot', 'gfn', 'mask'],
  write_protect_gfn: ['gfn', 'level'],
  zap_collapsible: ['slot'],
  set_memslot: ['change'],
  swap_memslots: ['asId'],
  flush_shadow_memslot: ['slot', 'gfn', 'npages'],
  commit_region: ['change'],
  mmio_gen: ['generation'],
  gmem_inval_begin: ['start', 'end'],
  flush_shadow_all: [],
  reclaimed: [],
  mark_mmio_spte: ['gfn'],
  rmp_make_private: ['page', 'gfn', 'level', 'count'],
  rmp_make_shared: ['page', 'gfn', 'level', 'count'],
  psmash: ['page', 'gfn', 'level', 'count'],
  kvm_rmp_fault: ['vcpu', 'gfn', 'page', 'level'],
  map_gpa_range_exit: ['vcpu', 'gfn', 'npages', 'private', 'pageSize'],
};

const TDX_EVENTS = ['seamcall', 'sept_removed', 'kick'];

const texts = new WeakMap<Meaning, string>();
/** The bits of a leaf as letters, in a fixed order; a letter for each bit that is set. */
export function meaningText(meaning: Meaning): string {
  let text = texts.get(meaning);
  if (text === undefined) {
    text = meaning.class === 'leaf' ? `leaf(${lettersOf(meaning)})` : meaning.class;
    if (meaning.class === 'mmio') text = `mmio(${meaning.mmioGeneration})`;
    texts.set(meaning, text);
  }
  return text;
}
function lettersOf(meaning: Meaning): string {
  const letters: [string, boolean][] = [
    ['w', meaning.writable],
    ['x', meaning.executable],
    ['a', meaning.accessed],
    ['d', meaning.dirty],
    ['h', meaning.hostWritable],
    ['m', meaning.mmuWritable],
    ['P', meaning.private],
  ];
  return letters.map(([letter, set]) => (set ? letter : '-')).join('');
}

function fieldText(value: unknown): string {
  if (typeof value === 'boolean') return value ? '1' : '0';
  if (typeof value === 'number' || typeof value === 'bigint')
    return BigInt(value) >= (1n << 64n) - 1n ? 'max' : `${value}`;
  return String(value);
}

/** Every field of an event in one line; a run of entries gives one line an entry. Unknown events keep only their name. */
export function eventLines(event: AnyEvent): string[] {
  if (event.name === 'spte_changed') {
    const { asId, root, gfn, level, old, new: after, count } = event;
    const pages = 512 ** (Number(level) - 1);
    const change = `${meaningText(old as Meaning)} -> ${meaningText(after as Meaning)}`;
    return Array.from(
      { length: Number(count ?? 1) },
      (_, k) => `spte ${asId} ${root} L${level} ${Number(gfn) + k * pages} ${change}`,
    );
  }
  // What the TDX module is asked stands beside the sptes' changes: rules of its own hold it.
  if (TDX_EVENTS.includes(event.name)) return [];
  const fields = FIELDS[event.name];
  if (!fields) return [event.name];
  return [[event.name, ...fields.map((field) => `${field}=${fieldText(event[field])}`)].join(' ')];
}

const hex = (value: unknown): string => `0x${Number(value).toString(16)}`;
const LEVEL = ['', '4K', '2M', '1G', '512G', '256T'];

/** An event as a claim, for a trace that a person reads; undefined for what only frames other events. */
export function claimOf(event: AnyEvent): string[] {
  const size = LEVEL[Number(event.level)];
  switch (event.name) {
    case 'inv_begin':
      return ['begin'];
    case 'inv_add':
      return [`add [${hex(event.start)}, ${hex(event.end)})`];
    case 'inv_end':
      return [`end seq ${Number(event.seq) + 1}`];
    case 'flush':
      return ['flush'];
    case 'mark_mmio_spte':
      return [`mmio ${hex(event.gfn)}`];
    case 'split_huge_page':
      return [`split ${hex(event.gfn)} ${size}`];
    case 'unmap_gfn_range':
      return [`unmap slot ${event.slot} [${hex(event.start)}, ${hex(event.end)})`];
    case 'age_gfn':
    case 'test_age_gfn':
      return [
        `${event.name === 'age_gfn' ? 'age' : 'test age'} slot ${event.slot} [${hex(event.start)}, ${hex(event.end)})`,
      ];
    case 'post_attr':
      return [`store [${hex(event.start)}, ${hex(event.end)}) ${Number(event.arg) & 8 ? 'private' : 'shared'}`];
    case 'spte_changed':
      return Array.from({ length: Number(event.count ?? 1) }, (_, k) => {
        const gfn = hex(Number(event.gfn) + k * 512 ** (Number(event.level) - 1));
        const from = (event.old as Meaning).class;
        const to = (event.new as Meaning).class;
        const tree = event.root === 'mirror' ? ' mirror' : '';
        const verb =
          from === 'leaf' && to === 'leaf'
            ? 'change'
            : to === 'nonpresent'
              ? 'zap'
              : to === 'table'
                ? 'link'
                : to === 'frozen'
                  ? 'freeze'
                  : 'map';
        return `${verb} ${gfn} ${size}${tree}`;
      });
    default:
      return [];
  }
}
