// Credits from microcredits, as the pool writes them (potluck.credits.rounded): four digits and at least two decimals,
// and nothing shown as zero that is not.
globalThis.credits = (micro) => {
  const decimals = Math.min(6, Math.max(2, 4 - (String(Math.abs(micro)).length - 6)));
  return (micro / 1e6).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: decimals });
};
