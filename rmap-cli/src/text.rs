//! Numbers and tables as people read them.

/// Bytes, in a unit that suits them.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1023.95 {
        value /= 1024.0;
        unit = units.next().or(unit);
    }
    format!("{value:.1} {}", unit.copied().unwrap_or_default())
}

/// A time in nanoseconds, in a unit that suits it.
pub(crate) fn time(ns: u64) -> String {
    rmap_bench::measure::time(ns as f64)
}

/// How many there are of something.
pub(crate) fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ if what.ends_with('s') => format!("{number} {what}es"),
        _ => format!("{number} {what}s"),
    }
}

/// How often something was.
pub(crate) fn times(number: u64) -> String {
    match number {
        0 => "never".into(),
        1 => "once".into(),
        _ => format!("{number} times"),
    }
}

/// Rows of words, each column as wide as its widest word. Columns whose words are numbers are given as `right`.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table with these words at its top.
    pub(crate) fn new(head: &[&str], right: &'static [usize]) -> Self {
        let mut table = Self { rows: Vec::new(), right };
        if !head.is_empty() {
            table.add(head.iter().map(|word| (*word).to_owned()).collect());
        }
        table
    }

    pub(crate) fn add(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// The lines, each with so many blanks in front.
    pub(crate) fn lines(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|w| w.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut lines = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (column, word) in row.iter().enumerate() {
                let width = widths[column];
                line += &if self.right.contains(&column) {
                    format!("{word:>width$}  ")
                } else {
                    format!("{word:<width$}  ")
                };
            }
            lines += line.trim_end();
            lines.push('\n');
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_suit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(
            (count(1, "thread"), count(0, "thread"), times(1)),
            ("1 thread".into(), "0 threads".into(), "once".into())
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_word() {
        let mut table = Table::new(&["a", "number"], &[1]);
        table.add(vec!["long".into(), "7".into()]);
        assert_eq!(table.lines(1), " a     number\n long       7\n");
    }
}
