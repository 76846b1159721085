// What was zapped or destroyed although nobody asked for it: the engine's records, decoded.

/** Who made the range that did it, in the engine's order (assembly/losses.ts): spec 2.3's producers. */
export const PRODUCERS = [
  'kvm_gfn_range call',
  'mmu notifier',
  'guest_memfd punch hole',
  'guest_memfd release',
  'guest_memfd memory error',
  'set memory attributes',
  'memslot delete or move',
  'kvm_zap_gfn_range',
  'guest_memfd set memory attributes',
] as const;
export type Producer = (typeof PRODUCERS)[number];

/** The method of the API that leads to each producer. */
const OPERATIONS = [
  'unmapGfnRange',
  'host',
  'fallocate',
  'close',
  'memoryError',
  'setMemoryAttributes',
  'setUserMemoryRegion',
  'zapGfnRange',
  'setMemoryAttributes',
] as const;

/** gfns [start, end) that something happened to which the request did not ask for. */
export interface Loss {
  /** 'content': private pages whose content was destroyed; 'over-zap': gfns zapped beyond the range with a huge leaf. */
  kind: 'content' | 'over-zap';
  /** The root whose leaves went. */
  root: 'direct' | 'mirror';
  start: number;
  end: number;
  /** The API's method; 'host' where the host changed its memory. */
  operation: (typeof OPERATIONS)[number];
  producer: Producer;
  /** The selector that the range carried; which part counts is the filter form's to say. */
  filter: {
    form: string;
    onlyPrivate: boolean;
    onlyShared: boolean;
    attrFilter: number;
    /** The new attributes, of a conversion. */
    attributes: number;
  };
  /** The range that was asked for, clipped to its slot. */
  request: { start: number; end: number };
}

const RECORD_WORDS = 12;

/** Decodes `count` records of `words`; `form` is the VM's filter form. */
export function decodeLosses(words: Uint32Array, count: number, form: string): Loss[] {
  const losses: Loss[] = [];
  for (let index = 0; index < count; index++) {
    const at = index * RECORD_WORDS;
    const u64 = (word: number) => words[at + word] + words[at + word + 1] * 4294967296;
    const selector = words[at + 2];
    losses.push({
      kind: words[at] === 1 ? 'content' : 'over-zap',
      root: words[at] === 2 ? 'direct' : 'mirror',
      start: u64(4),
      end: u64(6),
      operation: OPERATIONS[words[at + 1]],
      producer: PRODUCERS[words[at + 1]],
      filter: {
        form,
        onlyPrivate: (selector & 8) !== 0,
        onlyShared: (selector & 16) !== 0,
        attrFilter: selector & 3,
        attributes: words[at + 3],
      },
      request: { start: u64(8), end: u64(10) },
    });
  }
  return losses;
}
