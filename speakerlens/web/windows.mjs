// Windows, as the server cuts them: measures/windows.py, and the joining of maps in serving/pipeline/aggregate.py.

export const RATE = 16_000;

const BEND = 10;
const PART = 5;

/** Return where the last window of `count` samples begins. */
function last(count, { length, hop, grid, least }) {
  const beyond = count - length;
  if (beyond <= 0) return 0;
  const left = beyond % hop || hop;
  const full = Math.floor((length * left) / hop);
  const share = Math.floor((full * ((BEND - 1) * hop + left)) / (BEND * hop));
  const wanted = Math.max(share, Math.floor((count - 2 * length) / PART), left + grid, least);
  return Math.max(Math.floor((count - wanted) / grid), Math.ceil(beyond / grid)) * grid;
}

/** Return the windows of `samples`, each {start, samples, weight}; all begin on one grid, the last ends with the audio. */
export function cut(samples, windows) {
  const { length, hop, grid } = windows;
  const final = last(samples.length, windows);
  const cutAt = (start) => {
    const piece = samples.subarray(start, Math.min(start + length, samples.length));
    return { start, samples: piece, weight: final ? Math.min(1, (piece.length + grid) / length) : 1 };
  };
  const starts = [];
  for (let start = 0; start < final && start + length < samples.length; start += hop) starts.push(start);
  return [...starts, final].map(cutAt);
}

/** Join matrices [rows x columns] that begin at `first`, cross-faded by the distance from each one's edge. */
export function join(columns, parts) {
  const rows = parts[0].values.length / parts[0].columns;
  const total = new Float32Array(rows * columns);
  const weights = new Float32Array(columns);
  for (const part of parts) {
    for (let column = 0; column < part.columns && part.first + column < columns; column++) {
      const weight = Math.min(column, part.columns - 1 - column) + 0.5;
      weights[part.first + column] += weight;
      for (let row = 0; row < rows; row++) {
        total[row * columns + part.first + column] += weight * part.scale * part.values[row * part.columns + column];
      }
    }
  }
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) total[row * columns + column] /= weights[column] || 1;
  }
  return total;
}

/** Interpolate a matrix bilinearly to [rows x columns], with half-pixel centres. */
export function resize(values, fromRows, fromColumns, rows, columns) {
  const result = new Float32Array(rows * columns);
  const across = places(columns, fromColumns);
  const along = places(rows, fromRows);
  for (let row = 0; row < rows; row++) {
    const [low, high, part] = along[row];
    for (let column = 0; column < columns; column++) {
      const [left, right, share] = across[column];
      const below = values[low * fromColumns + left] * (1 - share) + values[low * fromColumns + right] * share;
      const above = values[high * fromColumns + left] * (1 - share) + values[high * fromColumns + right] * share;
      result[row * columns + column] = below * (1 - part) + above * part;
    }
  }
  return result;
}

function places(cells, size) {
  return Array.from({ length: cells }, (_, cell) => {
    const position = Math.max(0, ((cell + 0.5) * size) / cells - 0.5);
    const low = Math.floor(position);
    return [low, Math.min(low + 1, size - 1), position - low];
  });
}
