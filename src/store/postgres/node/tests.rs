use super::*;

#[test]
fn a_place_holds_the_node_and_the_key() {
    for (number, key) in [
        (1, 1),
        (1, -1),
        (7, i64::from(u32::MAX)),
        (7, -(1 << 30)),
        (1 << 22, 5),
    ] {
        assert_eq!(Node::of_place(Node::place(number, key)), (number, key));
    }
}
