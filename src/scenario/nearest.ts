// Which known name a mistyped one was probably meant to be.

/** The names at most a third of their letters away from `name`, nearest first, three at most. */
export function nearestNames(name: string, names: readonly string[]): string[] {
  if (name.length > 100) return [];
  return names
    .map((known) => ({ known, distance: distanceBetween(name.toLowerCase(), known.toLowerCase()) }))
    .filter(({ distance }) => distance <= Math.max(1, Math.floor(name.length / 3)))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, 3)
    .map(({ known }) => known);
}

/** The end of a message about an unknown name: empty, or what may have been meant. */
export function didYouMean(name: string, names: readonly string[]): string {
  const near = nearestNames(name, names);
  return near.length > 0 ? `; did you mean ${near.join(' or ')}?` : '';
}

/** Letters to add, drop, change or swap with the next one to get from `a` to `b` (optimal string alignment). */
function distanceBetween(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      next.push(
        Math.min(
          row[j] + 1,
          next[j - 1] + 1,
          row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1),
          isSwap ? before[j - 2] + 1 : Number.POSITIVE_INFINITY,
        ),
      );
    }
    before = row;
    row = next;
  }
  return row[b.length];
}
