//! Bars of text.

/// Characters of the longest bar.
const WIDTH: f64 = 40.0;

/// A line for each number: its name, a bar, and the number.
pub(super) fn bars(rows: &[(String, f64)]) -> String {
    let largest = rows.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let names = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut lines = String::new();
    for (name, value) in rows {
        let len = if largest > 0.0 { (value / largest * WIDTH).round() as usize } else { 0 };
        lines +=
            &format!("  {name:<names$}  {:<width$}  {value:6.2}\n", "#".repeat(len), width = WIDTH as usize);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_the_largest_number() {
        let lines = bars(&[("a".into(), 10.0), ("bb".into(), 5.0), ("c".into(), 0.0)]);
        let bars: Vec<usize> = lines.lines().map(|line| line.matches('#').count()).collect();
        assert_eq!(bars, [40, 20, 0]);
        assert_eq!(bars_of_nothing(), "  none  ".len() + 40 + 8);
    }

    fn bars_of_nothing() -> usize {
        bars(&[("none".into(), 0.0)]).trim_end_matches('\n').chars().count()
    }
}
