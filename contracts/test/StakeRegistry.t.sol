// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IStakeRegistry} from "../src/interfaces/IStakeRegistry.sol";
import {Market} from "./utils/Market.sol";

contract StakeRegistryTest is Market {
    IStakeRegistry.Tier private constant CONSUMER = IStakeRegistry.Tier.Consumer;
    IStakeRegistry.Tier private constant PROSUMER = IStakeRegistry.Tier.Prosumer;
    IStakeRegistry.Tier private constant ENTERPRISE = IStakeRegistry.Tier.Enterprise;
    address private constant OTHER = 0x71bE63f3384f5fb98995898A86B02Fb2426c5788;

    function provide(uint256 amount) private {
        stakeAs(PROVIDER, CONSUMER, amount);
        bindAs(PROVIDER, SIGNER, PEER);
    }

    function fund(address who, uint256 amount) private {
        octoA.transfer(who, amount);
        vm.prank(who);
        octoA.approve(address(registry), amount);
    }

    function unstakeAs(address who, uint256 amount) private {
        vm.prank(who);
        registry.unstake(amount);
    }

    function held() private view returns (IStakeRegistry.Stake memory) {
        return registry.stakeOf(PROVIDER);
    }

    function later(uint256 seconds_) private {
        vm.warp(vm.getBlockTimestamp() + seconds_);
    }

    // ---- staking, topping up, tiers ------------------------------------------------------------------------------

    function test_tiersTakeWhatTheySay() external {
        vm.assertEq(registry.minimumOf(CONSUMER), 1_000 ether);
        vm.assertEq(registry.minimumOf(PROSUMER), 5_000 ether);
        vm.assertEq(registry.minimumOf(ENTERPRISE), 10_000 ether);
        vm.expectRevert(IStakeRegistry.NoTier.selector);
        registry.minimumOf(IStakeRegistry.Tier.None);
    }

    function test_stakeBondsAndActivatesUpToItsTier() external {
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Staked(PROVIDER, PROSUMER, 5_000 ether, 5_000 ether);
        stakeAs(PROVIDER, PROSUMER, 5_000 ether);
        bindAs(PROVIDER, SIGNER, PEER);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
        vm.assertTrue(registry.isActive(PROVIDER, PROSUMER));
        vm.assertFalse(registry.isActive(PROVIDER, ENTERPRISE));
        vm.assertFalse(registry.isActive(PROVIDER, IStakeRegistry.Tier.None));
        vm.assertFalse(registry.isActive(OTHER, CONSUMER));
        vm.assertEq(octoA.balanceOf(address(registry)), 5_000 ether);
        vm.assertEq(registry.token(), address(octoA));
    }

    function test_stakeWithoutASignerIsNotActive() external {
        stakeAs(PROVIDER, CONSUMER, 1_000 ether);
        vm.assertFalse(registry.isActive(PROVIDER, CONSUMER));
        bindAs(PROVIDER, SIGNER, PEER);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
    }

    function test_stakeBelowItsTierIsRefused() external {
        vm.expectRevert(
            abi.encodeWithSelector(IStakeRegistry.BelowTier.selector, CONSUMER, 1_000 ether, 1_000 ether - 1)
        );
        vm.prank(PROVIDER);
        registry.stake(CONSUMER, 1_000 ether - 1);
    }

    function test_stakeForNoTierOrOfNothingIsRefused() external {
        vm.startPrank(PROVIDER);
        vm.expectRevert(IStakeRegistry.NoTier.selector);
        registry.stake(IStakeRegistry.Tier.None, 1_000 ether);
        vm.expectRevert(IStakeRegistry.ZeroAmount.selector);
        registry.stake(CONSUMER, 0);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.AmountTooLarge.selector, type(uint256).max));
        registry.stake(CONSUMER, type(uint256).max);
        registry.stake(CONSUMER, 1_000 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.AmountTooLarge.selector, type(uint96).max));
        registry.topUp(type(uint96).max);
    }

    function test_stakeWithPermitNeedsNoApproval() external {
        octoA.transfer(payer, 1_000 ether);
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        uint256 deadline = vm.getBlockTimestamp();
        bytes32 said = keccak256(abi.encode(typehash, payer, address(registry), 1_000 ether, 0, deadline));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(payerKey, keccak256(abi.encodePacked("\x19\x01", octoA.DOMAIN_SEPARATOR(), said)));
        vm.prank(payer);
        registry.stakeWithPermit(CONSUMER, 1_000 ether, deadline, v, r, s);
        vm.assertEq(registry.stakeOf(payer).bonded, 1_000 ether);
    }

    function test_topUpAndChangeTier() external {
        provide(1_000 ether);
        vm.startPrank(PROVIDER);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.BelowTier.selector, PROSUMER, 5_000 ether, 1_000 ether));
        registry.changeTier(PROSUMER);
        registry.topUp(4_000 ether);
        vm.expectEmit(address(registry));
        emit IStakeRegistry.TierChanged(PROVIDER, CONSUMER, PROSUMER);
        registry.changeTier(PROSUMER);
        vm.assertTrue(registry.isActive(PROVIDER, PROSUMER));
        registry.changeTier(CONSUMER); // and down, so that the surplus can leave
        registry.unstake(4_000 ether);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
        vm.expectRevert(IStakeRegistry.NoTier.selector);
        registry.changeTier(IStakeRegistry.Tier.None);
        vm.expectRevert(IStakeRegistry.ZeroAmount.selector);
        registry.topUp(0);
    }

    function test_topUpNeedsAStake() external {
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotStaked.selector, 0));
        vm.prank(PROVIDER);
        registry.topUp(1 ether);
    }

    // ---- unbonding -----------------------------------------------------------------------------------------------

    function test_unbondingTakesSevenDays() external {
        provide(1_000 ether);
        uint48 releaseAt = uint48(vm.getBlockTimestamp() + 7 days);
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Unbonding(PROVIDER, 1_000 ether, 1_000 ether, releaseAt);
        unstakeAs(PROVIDER, 1_000 ether);
        vm.assertFalse(registry.isActive(PROVIDER, CONSUMER));
        later(7 days - 1);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.TooEarly.selector, releaseAt));
        vm.prank(PROVIDER);
        registry.withdraw();
        later(1);
        vm.prank(PROVIDER);
        vm.assertEq(registry.withdraw(), 1_000 ether);
        vm.assertEq(octoA.balanceOf(PROVIDER), 100_000 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.TooEarly.selector, 0));
        vm.prank(PROVIDER);
        registry.withdraw();
    }

    function test_newStakeDoesNotCancelUnbonding() external {
        provide(1_000 ether);
        unstakeAs(PROVIDER, 1_000 ether);
        uint48 releaseAt = held().releaseAt;
        later(3 days);
        stakeAs(PROVIDER, CONSUMER, 2_000 ether);
        vm.assertEq(held().releaseAt, releaseAt);
        vm.assertEq(held().unbonding, 1_000 ether);
        vm.assertEq(held().bonded, 2_000 ether);
        later(4 days);
        vm.prank(PROVIDER);
        vm.assertEq(registry.withdraw(), 1_000 ether);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
    }

    function test_unstakingMoreRestartsTheClockForAll() external {
        provide(3_000 ether);
        unstakeAs(PROVIDER, 1_000 ether);
        later(6 days);
        unstakeAs(PROVIDER, 1_000 ether);
        vm.assertEq(held().unbonding, 2_000 ether);
        vm.assertEq(held().releaseAt, vm.getBlockTimestamp() + 7 days);
    }

    function test_unstakeKeepsTheTiersMinimumOrTakesAll() external {
        provide(1_500 ether);
        vm.startPrank(PROVIDER);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.BelowTier.selector, CONSUMER, 1_000 ether, 999 ether));
        registry.unstake(501 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotStaked.selector, 1_500 ether));
        registry.unstake(1_501 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotStaked.selector, 1_500 ether));
        registry.unstake(type(uint256).max);
        vm.expectRevert(IStakeRegistry.ZeroAmount.selector);
        registry.unstake(0);
        registry.unstake(500 ether);
        registry.unstake(1_000 ether);
        vm.assertEq(uint256(held().tier), 0);
    }

    // ---- binding -------------------------------------------------------------------------------------------------

    function test_bindTiesSignerAndPeerToTheStaker() external {
        address signer = vm.addr(SIGNER);
        IStakeRegistry.Signature memory signature = bindingBy(SIGNER, PROVIDER, signer, PEER);
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Bound(PROVIDER, signer, PEER);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, signature);
        IStakeRegistry.Identity memory identity = registry.identityOf(PROVIDER);
        vm.assertEq(identity.receiptSigner, signer);
        vm.assertEq(identity.peer, PEER);
        vm.assertEq(identity.nonce, 1);
        vm.assertEq(registry.signerRecord(signer).staker, PROVIDER);
    }

    function test_bindNeedsTheSignersSignatureForThisStakerPeerAndNumber() external {
        address signer = vm.addr(SIGNER);
        IStakeRegistry.Signature[4] memory wrong = [
            bindingBy(OTHER_SIGNER, PROVIDER, signer, PEER),
            bindingBy(SIGNER, OTHER, signer, PEER),
            bindingBy(SIGNER, PROVIDER, signer, keccak256("another peer")),
            IStakeRegistry.Signature(0, 0)
        ];
        for (uint256 i = 0; i < wrong.length; i++) {
            vm.expectRevert(IStakeRegistry.BadSignature.selector);
            vm.prank(PROVIDER);
            registry.bind(signer, PEER, wrong[i]);
        }
        IStakeRegistry.Signature memory once = bindingBy(SIGNER, PROVIDER, signer, PEER);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, once);
        vm.expectRevert(IStakeRegistry.BadSignature.selector);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, once);
    }

    function test_bindingHoldsAtOneRegistryOnly() external {
        IStakeRegistry twin = deployRegistry(octoA, "octo-test");
        address signer = vm.addr(SIGNER);
        (bytes32 r, bytes32 vs) = compact(SIGNER, twin.bindingDigest(PROVIDER, signer, PEER, 0));
        vm.expectRevert(IStakeRegistry.BadSignature.selector);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, IStakeRegistry.Signature(r, vs));
    }

    function test_bindRefusesNobody() external {
        vm.expectRevert(IStakeRegistry.ZeroIdentity.selector);
        registry.bind(address(0), PEER, IStakeRegistry.Signature(0, 0));
        vm.expectRevert(IStakeRegistry.ZeroIdentity.selector);
        registry.bind(OTHER, 0, IStakeRegistry.Signature(0, 0));
    }

    function test_signerAnswersForOneStakerUntilItsRotationIsPast() external {
        provide(1_000 ether);
        address signer = vm.addr(SIGNER);
        tryToTake(signer);
        bindAs(PROVIDER, OTHER_SIGNER, PEER);
        uint48 until = uint48(vm.getBlockTimestamp() + 7 days);
        vm.assertEq(registry.signerRecord(signer).slashableUntil, until);
        later(7 days - 1);
        tryToTake(signer);
        later(1);
        bindAs(OTHER, SIGNER, PEER);
        vm.assertEq(registry.signerRecord(signer).staker, OTHER);
    }

    function tryToTake(address signer) private {
        IStakeRegistry.Signature memory signature = bindingBy(SIGNER, OTHER, signer, PEER);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.SignerTaken.selector, signer, PROVIDER));
        vm.prank(OTHER);
        registry.bind(signer, PEER, signature);
    }

    function test_bindingTheSameSignerAgainChangesThePeerOnly() external {
        provide(1_000 ether);
        bindAs(PROVIDER, SIGNER, keccak256("another peer"));
        vm.assertEq(registry.signerRecord(vm.addr(SIGNER)).slashableUntil, 0);
        vm.assertEq(registry.identityOf(PROVIDER).peer, keccak256("another peer"));
    }

    function test_rotatingBackMakesAnOldSignerCurrentAgain() external {
        provide(1_000 ether);
        bindAs(PROVIDER, OTHER_SIGNER, PEER);
        bindAs(PROVIDER, SIGNER, PEER);
        vm.assertEq(registry.signerRecord(vm.addr(SIGNER)).slashableUntil, 0);
        vm.assertEq(registry.signerRecord(vm.addr(OTHER_SIGNER)).slashableUntil, vm.getBlockTimestamp() + 7 days);
    }

    // ---- slashing ------------------------------------------------------------------------------------------------

    function test_equivocationCostsHalfTheReporterGetsATenthTheRestBurns() external {
        provide(1_000 ether);
        uint256 supply = octoA.totalSupply();
        bytes32 fault =
            keccak256(abi.encode(vm.addr(SIGNER), keccak256("channel"), keccak256(abi.encode("task", 1)), uint64(1)));
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Slashed(PROVIDER, STRANGER, fault, 500 ether, 50 ether);
        vm.assertEq(slashAs(STRANGER, SIGNER, 1), 50 ether);
        vm.assertEq(octoA.balanceOf(STRANGER), 50 ether);
        vm.assertEq(octoA.totalSupply(), supply - 450 ether);
        vm.assertEq(held().bonded, 500 ether);
        vm.assertFalse(registry.isActive(PROVIDER, CONSUMER));
        vm.assertTrue(registry.isSlashed(fault));
        vm.prank(PROVIDER);
        registry.topUp(500 ether); // and it may work itself up again
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
    }

    function test_reportingOneselfDoesNotPay() external {
        provide(1_000 ether);
        slashAs(PROVIDER, SIGNER, 1);
        vm.assertEq(octoA.balanceOf(PROVIDER), 99_000 ether + 50 ether);
        vm.assertTrue(registry.REPORTER_BPS() < 10_000);
    }

    function test_whatUnbondsIsSlashedToo() external {
        provide(3_000 ether);
        unstakeAs(PROVIDER, 2_000 ether);
        slashAs(STRANGER, SIGNER, 1); // half of 3,000: all of the 1,000 bonded, 500 of what unbonds
        vm.assertEq(held().bonded, 0);
        vm.assertEq(held().unbonding, 1_500 ether);
        later(7 days);
        vm.prank(PROVIDER);
        vm.assertEq(registry.withdraw(), 1_500 ether);
    }

    function test_faultCountsOnceAnotherFaultAgain() external {
        provide(1_000 ether);
        slashAs(STRANGER, SIGNER, 1);
        (IStakeRegistry.Receipt memory one, IStakeRegistry.Receipt memory third) =
            (receipt(1, 1, "one"), receipt(1, 1, "third"));
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byThird = signed(SIGNER, third);
        bytes32 fault = keccak256(abi.encode(vm.addr(SIGNER), one.channel, one.task, one.seq));
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.AlreadySlashed.selector, fault));
        registry.slashEquivocation(third, byThird, one, byOne);
        slashAs(STRANGER, SIGNER, 2);
        vm.assertEq(held().bonded, 250 ether);
    }

    function test_anyFieldOfTheReceiptMakesAContradiction() external {
        provide(1_000 ether);
        for (uint64 seq = 1; seq <= 7; seq++) {
            IStakeRegistry.Receipt memory one = receipt(1, seq, "one");
            IStakeRegistry.Receipt memory other = receipt(1, seq, seq == 1 ? bytes32("other") : bytes32("one"));
            if (seq == 2) other.isFinal = true;
            if (seq == 3) other.tokensIn += 1;
            if (seq == 4) other.tokensOut += 1;
            if (seq == 5) other.amount += 1;
            if (seq == 6) other.transcriptRoot = "other";
            if (seq == 7) other.quote = "other";
            uint256 before = held().bonded;
            registry.slashEquivocation(one, signed(SIGNER, one), other, signed(SIGNER, other));
            vm.assertEq(held().bonded, before - before / 2);
        }
    }

    function test_sameReceiptTwiceIsNoEquivocation() external {
        provide(1_000 ether);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        vm.expectRevert(IStakeRegistry.NotEquivocation.selector);
        registry.slashEquivocation(one, byOne, one, byOne);
    }

    function test_receiptsOfDifferentStepsAreNoEquivocation() external {
        provide(1_000 ether);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        for (uint256 what = 0; what < 3; what++) {
            IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
            if (what == 0) other.seq = 2;
            if (what == 1) other.task = keccak256("another task");
            if (what == 2) other.channel = keccak256("another channel");
            IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
            vm.expectRevert(IStakeRegistry.NotEquivocation.selector);
            registry.slashEquivocation(one, byOne, other, byOther);
        }
    }

    function test_bothReceiptsMustBeByOneBoundSigner() external {
        provide(1_000 ether);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
        (address signer, address second) = (vm.addr(SIGNER), vm.addr(OTHER_SIGNER));
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory forged = signed(OTHER_SIGNER, other);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.DifferentSigners.selector, signer, second));
        registry.slashEquivocation(one, byOne, other, forged);

        byOne = signed(OTHER_SIGNER, one);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotSlashable.selector, second));
        registry.slashEquivocation(one, byOne, other, forged);

        // Two signatures that are none recover the zero address, which nobody is.
        IStakeRegistry.Signature memory none;
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotSlashable.selector, address(0)));
        registry.slashEquivocation(one, none, other, none);
    }

    function test_receiptsOfAnotherNetworkOrChainDoNotCount() external {
        provide(1_000 ether);
        IStakeRegistry foreign = deployRegistry(octoA, "octo-main");
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
        (bytes32 r, bytes32 vs) = compact(SIGNER, foreign.receiptDigest(one));
        (bytes32 r2, bytes32 vs2) = compact(SIGNER, foreign.receiptDigest(other));
        refuseForeign(one, IStakeRegistry.Signature(r, vs), other, IStakeRegistry.Signature(r2, vs2));

        uint256 home = vm.getChainId();
        vm.chainId(0); // the local ledger's
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
        vm.chainId(home);
        refuseForeign(one, byOne, other, byOther);
    }

    function refuseForeign(
        IStakeRegistry.Receipt memory one,
        IStakeRegistry.Signature memory byOne,
        IStakeRegistry.Receipt memory other,
        IStakeRegistry.Signature memory byOther
    ) private {
        try registry.slashEquivocation(one, byOne, other, byOther) {
            vm.assertTrue(false, "slashed by receipts of elsewhere");
        } catch (bytes memory why) {
            vm.assertTrue(bytes4(why) == IStakeRegistry.DifferentSigners.selector);
        }
        vm.assertEq(held().bonded, 1_000 ether);
    }

    function test_rotatedSignerStaysSlashableForAnUnbondingPeriod() external {
        provide(1_000 ether);
        bindAs(PROVIDER, OTHER_SIGNER, PEER);
        later(7 days - 1);
        slashAs(STRANGER, SIGNER, 1);
        vm.assertEq(held().bonded, 500 ether);
        later(1);
        IStakeRegistry.Receipt memory one = receipt(2, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(2, 1, "other");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotSlashable.selector, vm.addr(SIGNER)));
        registry.slashEquivocation(one, byOne, other, byOther);
        slashAs(STRANGER, OTHER_SIGNER, 3);
    }

    function test_slashingAnEmptyStakeIsRefused() external {
        bindAs(PROVIDER, SIGNER, PEER);
        IStakeRegistry.Receipt memory one = receipt(1, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(1, 1, "other");
        IStakeRegistry.Signature memory byOne = signed(SIGNER, one);
        IStakeRegistry.Signature memory byOther = signed(SIGNER, other);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NothingToSlash.selector, PROVIDER));
        registry.slashEquivocation(one, byOne, other, byOther);
        // The fault is not used up by the attempt.
        stakeAs(PROVIDER, CONSUMER, 1_000 ether);
        registry.slashEquivocation(one, byOne, other, byOther);
        vm.assertEq(held().bonded, 500 ether);
    }

    function test_oneStakersFaultLeavesTheOthersAlone() external {
        provide(1_000 ether);
        fund(OTHER, 5_000 ether);
        stakeAs(OTHER, PROSUMER, 5_000 ether);
        bindAs(OTHER, OTHER_SIGNER, PEER);
        slashAs(STRANGER, SIGNER, 1);
        vm.assertEq(registry.stakeOf(OTHER).bonded, 5_000 ether);
        vm.assertTrue(registry.isActive(OTHER, PROSUMER));
    }

    function testFuzz_slashIsHalfOfAllThereIs(uint96 bonded, uint96 leaving) external {
        uint256 amount = bound(bonded, 1_000 ether, 100_000 ether);
        uint256 unbonding = bound(leaving, 0, amount - 1_000 ether);
        provide(amount);
        if (unbonding != 0) unstakeAs(PROVIDER, unbonding);
        uint256 supply = octoA.totalSupply();
        uint256 reward = slashAs(STRANGER, SIGNER, 1);
        uint256 lost = amount / 2;
        vm.assertEq(uint256(held().bonded) + held().unbonding, amount - lost);
        vm.assertEq(reward, lost / 10);
        vm.assertEq(octoA.balanceOf(STRANGER), reward);
        vm.assertEq(octoA.totalSupply(), supply - (lost - reward));
        vm.assertEq(octoA.balanceOf(address(registry)), amount - lost);
    }
}
