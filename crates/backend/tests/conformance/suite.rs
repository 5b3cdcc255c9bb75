//! The list of bodies, and how a substrate runs them.

macro_rules! conformance {
    ($substrate:ident, $world:ty, [$($body:ident),* $(,)?]) => {
        mod $substrate {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    let world = <$world>::start().await;
                    crate::lock::$body(&world).await;
                }
            )*
        }
    };
}

macro_rules! everywhere {
    ($substrate:ident, $world:ty, [$($more:ident),*]) => {
        conformance!($substrate, $world, [
            one_holds_and_another_is_refused,
            fences_grow_from_grant_to_grant,
            the_newest_fence_is_that_of_the_last_grant,
            the_same_request_gets_the_same_grant,
            a_retry_that_is_given_up_does_not_take_the_hold_with_it,
            an_expired_hold_is_lost_and_the_next_fence_is_higher,
            renewals_keep_a_hold_beyond_its_time_to_live,
            release_hands_over_to_who_waits,
            a_wait_that_times_out_leaves_nothing_behind,
            a_caller_that_goes_away_leaves_no_ghost,
            releasing_twice_is_no_error_and_frees_only_once,
            a_hold_released_early_keeps_the_lock_for_its_minimal_time,
            lock_delay_holds_after_expiry_but_not_after_release,
            no_renewal_goes_beyond_the_longest_hold,
            force_release_takes_the_lock_and_raises_the_fence,
            a_full_queue_refuses_and_says_so,
            a_query_shows_holder_and_queue,
            a_class_created_again_goes_on_with_higher_fences,
            $($more),*
        ]);
    };
}

macro_rules! semaphores_everywhere {
    ($substrate:ident, $world:ty) => {
        semaphores_everywhere!($substrate, $world, weighted: [
            one_release_hands_over_to_several_in_their_order,
            a_heavy_request_is_not_overtaken_by_a_light_one,
        ]);
    };
    // Where a hold has one permit, there are no bodies about heavy ones.
    ($substrate:ident, $world:ty, weighted: [$($more:ident),* $(,)?]) => {
        semaphores_everywhere!($substrate, $world, [
            $($more,)*
            permits_in_use_are_never_more_than_there_are,
            whoever_has_its_share_does_not_hold_up_others,
            permits_of_a_dead_pod_come_back,
            what_can_never_fit_is_refused_at_once,
            fewer_permits_take_nothing_away_and_more_are_granted,
            the_same_request_has_its_permits_once,
            a_wait_that_times_out_leaves_no_permit_behind,
            force_release_takes_the_hold_with_a_fence,
            force_release_up_to_a_fence_keeps_what_is_newer,
            a_semaphore_created_again_goes_on_with_higher_fences,
        ]);
    };
    ($substrate:ident, $world:ty, [$($body:ident),* $(,)?]) => {
        mod $substrate {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    let world = <$world>::start().await;
                    crate::semaphore::$body(&world).await;
                }
            )*
        }
    };
}
