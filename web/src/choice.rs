//! In words, which layer the connection takes: the bundle says how its models were trained to choose one.

use crate::protocol::LayerChoice;

/// What the switch offers beside a layer of the visitor's own.
pub fn offered(choice: LayerChoice) -> String {
    match choice {
        LayerChoice::DecisionMaker => "Decision Maker's choice".into(),
        LayerChoice::Proportion => "Decision Maker's proportion".into(),
        LayerChoice::Mean => "mean of all layers".into(),
        LayerChoice::Random => "a layer at random".into(),
        LayerChoice::Fixed(layer) => format!("layer {}, as trained", layer + 1),
    }
}

/// What was taken of `n_layers`: `layer`, counted from 0, or all of them. Without a `choice` it was the visitor's.
pub fn taken(choice: Option<LayerChoice>, layer: Option<usize>, n_layers: usize) -> String {
    let of = match layer {
        Some(layer) => format!("layer {} of {n_layers}", layer + 1),
        None => format!("all {n_layers} layers"),
    };
    match choice {
        None => format!("You chose {of}."),
        Some(LayerChoice::DecisionMaker) => format!("The Decision Maker chose {of}."),
        Some(LayerChoice::Proportion) => format!("The Decision Maker took its share of every layer, most of {of}."),
        Some(LayerChoice::Mean) => format!("The mean of {of} was taken."),
        Some(LayerChoice::Random) => format!("Chance drew {of}."),
        Some(LayerChoice::Fixed(_)) => format!("These models always take {of}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_claim_no_choice_that_the_models_do_not_make() {
        assert_eq!(taken(Some(LayerChoice::DecisionMaker), Some(2), 6), "The Decision Maker chose layer 3 of 6.");
        assert_eq!(taken(None, Some(0), 6), "You chose layer 1 of 6.");
        assert_eq!(taken(Some(LayerChoice::Mean), None, 6), "The mean of all 6 layers was taken.");
        for choice in [LayerChoice::Mean, LayerChoice::Random, LayerChoice::Fixed(2)] {
            let words = taken(Some(choice), Some(2), 6) + &offered(choice);
            assert!(!words.contains("Decision Maker"), "{words}");
        }
    }
}
