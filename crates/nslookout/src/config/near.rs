//! Which of the known keys was perhaps meant?

/// The known word nearest to `word`, if it is near enough for a slip of the finger or a style of writing.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |word: &str| word.replace(['_', '-'], "").to_lowercase();
    let word = plain(word);
    let enough = if word.chars().count() < 4 { 1 } else { 2 };
    known
        .iter()
        .map(|&known| (distance(&word, &plain(known)), known))
        .filter(|&(distance, _)| distance <= enough)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, known)| known)
}

/// Levenshtein's distance; swapped letters count as one slip.
fn distance(a: &str, b: &str) -> usize {
    let sorted = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    if a != b && sorted(a) == sorted(b) {
        return 1;
    }
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut next = vec![left];
        for ((y, above), diagonal) in b.chars().zip(row.iter().skip(1)).zip(&row) {
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_near_and_other_words_are_not() {
        let known = ["cluster", "nodes", "interval", "suspicionInterval", "metrics"];
        for (word, near) in [
            ("nodse", Some("nodes")),
            ("node", Some("nodes")),
            ("intervall", Some("interval")),
            ("suspicion_interval", Some("suspicionInterval")),
            ("CLUSTER", Some("cluster")),
            ("timeout", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), near, "{word}");
        }
    }
}
