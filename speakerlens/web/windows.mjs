// Windows, as the server cuts them: serving/pipeline/windows.py and the joining of maps in serving/pipeline/aggregate.py.

export const RATE = 16_000;

/** Return the windows of `samples`, each {start, samples}; all begin on one grid, and the last ends with the audio. */
export function cut(samples, { length, hop, grid }) {
  if (samples.length <= length) return [{ start: 0, samples }];
  const starts = [];
  for (let start = 0; start + length <= samples.length; start += hop) starts.push(start);
  const last = starts.at(-1);
  const left = samples.length - last - length;
  if (left > 0) starts.push(last + Math.ceil(left / grid) * grid);
  return starts.map((start) => ({ start, samples: samples.subarray(start, start + length) }));
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
