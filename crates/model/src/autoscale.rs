//! Rules by which a role's number of instances follows the clock or the load.
//!
//! Written in one setting, parts separated by semicolons, for example
//! `min=2; max=10; cooldown=300; cpu>70:+2; cpu<20:-1; queue>100:+1; at 08:00=6; at 20:00=2`. `cpu` is the average of
//! the ready instances' processors in percent of what they have; any other name is a number that the service pushes.
//! Times of day are UTC.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Seconds between two changes, where the rules do not say.
const COOLDOWN_DEFAULT: u64 = 300;

/// A role's rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autoscale {
    /// Never fewer instances.
    pub min: u32,
    /// Never more instances.
    pub max: u32,
    /// Seconds between two changes by load.
    pub cooldown_seconds: u64,
    /// By the time of day, earliest first.
    pub schedule: Vec<At>,
    /// By load; the first that holds decides.
    pub rules: Vec<Rule>,
}

/// From a time of day on, this many instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// Minutes after midnight, UTC.
    pub minute: u32,
    /// Instances.
    pub count: u32,
}

/// When a number is too high or too low, change the count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `cpu`, or the name of a number that the service pushes.
    pub metric: String,
    /// Whether the rule holds above the threshold, not below.
    pub above: bool,
    /// The threshold.
    pub threshold: i64,
    /// Instances to add, or to take away.
    pub step: i64,
}

impl FromStr for Autoscale {
    type Err = String;

    fn from_str(text: &str) -> Result<Autoscale, String> {
        let mut scale = Autoscale {
            min: 1,
            max: crate::limits::INSTANCES_MAX,
            cooldown_seconds: COOLDOWN_DEFAULT,
            schedule: Vec::new(),
            rules: Vec::new(),
        };
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            if let Some(rest) = part.strip_prefix("at ") {
                scale.schedule.push(parse_at(rest)?);
            } else if let Some((name, value)) = part.split_once('=').filter(|(name, _)| !name.contains(['<', '>'])) {
                let number: u64 = value.trim().parse().map_err(|_| format!("`{part}`: `{value}` is not a number"))?;
                let count = u32::try_from(number).map_err(|_| format!("`{part}`: {number} is too much"));
                match name.trim() {
                    "min" => scale.min = count?,
                    "max" => scale.max = count?,
                    "cooldown" => scale.cooldown_seconds = number,
                    other => return Err(format!("`{other}` is none of min, max and cooldown")),
                }
            } else {
                scale.rules.push(parse_rule(part)?);
            }
        }
        scale.schedule.sort_by_key(|at| at.minute);
        let most = crate::limits::INSTANCES_MAX;
        if scale.min > scale.max || scale.max > most {
            return Err(format!("min={} and max={} have to be in order, and at most {most}", scale.min, scale.max));
        }
        if scale.schedule.is_empty() && scale.rules.is_empty() {
            return Err("there is no rule, such as `cpu>70:+1` or `at 08:00=6`".to_owned());
        }
        Ok(scale)
    }
}

fn parse_at(text: &str) -> Result<At, String> {
    let wrong = || format!("`at {text}`: write `at HOURS:MINUTES=COUNT`, for example `at 08:00=6`");
    let (time, count) = text.split_once('=').ok_or_else(wrong)?;
    let (hours, minutes) = time.trim().split_once(':').ok_or_else(wrong)?;
    let (hours, minutes): (u32, u32) = (hours.parse().map_err(|_| wrong())?, minutes.parse().map_err(|_| wrong())?);
    if hours > 23 || minutes > 59 {
        return Err(wrong());
    }
    Ok(At { minute: hours * 60 + minutes, count: count.trim().parse().map_err(|_| wrong())? })
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    let wrong = || format!("`{text}`: write `METRIC>NUMBER:+STEP` or `METRIC<NUMBER:-STEP`, for example `cpu>70:+1`");
    let (condition, step) = text.split_once(':').ok_or_else(wrong)?;
    let above = condition.contains('>');
    let (metric, threshold) = condition.split_once(['>', '<']).ok_or_else(wrong)?;
    let metric = metric.trim();
    if metric.is_empty() || !metric.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(wrong());
    }
    let step: i64 = step.trim().parse().map_err(|_| wrong())?;
    if step == 0 {
        return Err(wrong());
    }
    Ok(Rule { metric: metric.to_owned(), above, threshold: threshold.trim().parse().map_err(|_| wrong())?, step })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let scale: Autoscale =
            "min=2; max=10; cooldown=60; cpu>70:+2; queue<5:-1; at 20:00=2; at 08:30=6".parse().unwrap();
        assert_eq!((scale.min, scale.max, scale.cooldown_seconds), (2, 10, 60));
        assert_eq!(scale.schedule, [At { minute: 510, count: 6 }, At { minute: 1200, count: 2 }]);
        assert_eq!(scale.rules[1], Rule { metric: "queue".into(), above: false, threshold: 5, step: -1 });
        for bad in ["", "min=2", "cpu>70", "cpu>70:0", "at 25:00=1", "min=9; max=3; cpu>1:+1", "x=1; cpu>1:+1"] {
            assert!(bad.parse::<Autoscale>().is_err(), "{bad}");
        }
    }
}
