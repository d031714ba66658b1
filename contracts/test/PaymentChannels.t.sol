// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {Market} from "./utils/Market.sol";

contract PaymentChannelsTest is Market {
    uint256 private constant DEPOSIT = 100 ether;

    function state(uint256 salt) private view returns (IPaymentChannels.Channel memory) {
        return channels.channel(idOf(salt));
    }

    function redeemAs(address who, IPaymentChannels.Voucher memory v) private returns (uint256) {
        vm.prank(who);
        return channels.redeem(PAYEE, v);
    }

    function closeAs(address who, uint256 salt) private returns (uint256) {
        IPaymentChannels.Terms memory terms = termsOf(salt);
        vm.prank(who);
        return channels.close(terms);
    }

    function topUpAs(address who, uint256 salt, uint256 amount) private {
        bytes32 id = idOf(salt);
        vm.prank(who);
        channels.topUp(id, amount);
    }

    function refuse(bytes4 why, uint256 salt) private {
        vm.expectRevert(abi.encodeWithSelector(why, idOf(salt)));
    }

    function refuse(bytes4 why, uint256 salt, uint256 more) private {
        vm.expectRevert(abi.encodeWithSelector(why, idOf(salt), more));
    }

    function refuse(bytes4 why, uint256 salt, uint256 more, uint256 most) private {
        vm.expectRevert(abi.encodeWithSelector(why, idOf(salt), more, most));
    }

    // ---- opening and topping up ----------------------------------------------------------------------------------

    function test_openLocksTheDeposit() external {
        bytes32 id = idOf(1);
        vm.expectEmit(address(channels));
        emit IPaymentChannels.Opened(id, payer, PAYEE, vm.addr(SESSION), bytes32(uint256(1)));
        openChannel(1, DEPOSIT);
        IPaymentChannels.Channel memory held = channels.channel(id);
        vm.assertEq(held.deposit, DEPOSIT);
        vm.assertEq(held.redeemed, 0);
        vm.assertEq(held.closesAt, 0);
        vm.assertEq(octo.balanceOf(address(channels)), DEPOSIT);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether - DEPOSIT);
    }

    function test_openTakesEachTermsOnce() external {
        openChannel(1, DEPOSIT);
        address sessionKey = vm.addr(SESSION);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, bytes32(uint256(1)), 1);
        closeAs(PAYEE, 1);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, bytes32(uint256(1)), 1);
    }

    function test_openRefusesNobody() external {
        address sessionKey = vm.addr(SESSION);
        vm.expectRevert(IPaymentChannels.ZeroAddress.selector);
        channels.open(address(0), sessionKey, 0, 1);
        vm.expectRevert(IPaymentChannels.ZeroAddress.selector);
        channels.open(PAYEE, address(0), 0, 1);
    }

    function test_openRefusesAmountsOutOfRange() external {
        address sessionKey = vm.addr(SESSION);
        uint256[3] memory amounts = [uint256(0), 2 ** 96, type(uint256).max];
        for (uint256 i = 0; i < amounts.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.AmountOutOfRange.selector, amounts[i]));
            channels.open(PAYEE, sessionKey, 0, amounts[i]);
        }
    }

    function test_openNeedsTheTokens() external {
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientBalance(address,uint256,uint256)", payer, 1_000_000 ether, 1_000_001 ether
            )
        );
        channels.open(PAYEE, sessionKey, 0, 1_000_001 ether);
    }

    function permit(uint256 amount, uint256 deadline) private view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 said = keccak256(abi.encode(typehash, payer, address(channels), amount, octo.nonces(payer), deadline));
        return vm.sign(payerKey, keccak256(abi.encodePacked("\x19\x01", octo.DOMAIN_SEPARATOR(), said)));
    }

    function openWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) private {
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        channels.openWithPermit(PAYEE, sessionKey, bytes32(uint256(1)), amount, deadline, v, r, s);
    }

    function test_openWithPermitNeedsNoApproval() external {
        vm.prank(payer);
        octo.approve(address(channels), 0);
        (uint8 v, bytes32 r, bytes32 s) = permit(DEPOSIT, vm.getBlockTimestamp());
        openWithPermit(DEPOSIT, vm.getBlockTimestamp(), v, r, s);
        vm.assertEq(state(1).deposit, DEPOSIT);
    }

    function test_openWithPermitThatSomeoneElseUsedFirst() external {
        vm.prank(payer);
        octo.approve(address(channels), 0);
        (uint8 v, bytes32 r, bytes32 s) = permit(DEPOSIT, vm.getBlockTimestamp());
        octo.permit(payer, address(channels), DEPOSIT, vm.getBlockTimestamp(), v, r, s);
        openWithPermit(DEPOSIT, vm.getBlockTimestamp(), v, r, s);
        vm.assertEq(state(1).deposit, DEPOSIT);
    }

    function test_openWithExpiredPermitShowsAsMissingAllowance() external {
        vm.prank(payer);
        octo.approve(address(channels), 0);
        (uint8 v, bytes32 r, bytes32 s) = permit(DEPOSIT, vm.getBlockTimestamp() - 1);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientAllowance(address,uint256,uint256)", address(channels), 0, DEPOSIT
            )
        );
        openWithPermit(DEPOSIT, vm.getBlockTimestamp() - 1, v, r, s);
    }

    function test_topUpAddsToTheDeposit() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        vm.expectEmit(address(channels));
        emit IPaymentChannels.ToppedUp(idOf(1), payer, 5 ether, DEPOSIT + 5 ether);
        topUpAs(payer, 1, 5 ether);
        vm.assertEq(state(1).deposit, DEPOSIT + 5 ether);
        vm.assertEq(state(1).redeemed, 30 ether);
        redeemAs(PAYEE, voucher(1, DEPOSIT + 5 ether));
        vm.assertEq(octo.balanceOf(PAYEE), DEPOSIT + 5 ether);
    }

    function test_topUpByAnyoneIsTheirGiftToThePayer() external {
        octo.transfer(STRANGER, 5 ether);
        vm.prank(STRANGER);
        octo.approve(address(channels), 5 ether);
        openChannel(1, DEPOSIT);
        topUpAs(STRANGER, 1, 5 ether);
        closeAs(PAYEE, 1);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether + 5 ether);
    }

    function test_topUpNeedsAnOpenChannel() external {
        bytes32 id = idOf(1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        channels.topUp(id, 1);
    }

    function test_topUpRefusesAmountsOutOfRange() external {
        openChannel(1, DEPOSIT);
        uint256[3] memory amounts = [uint256(0), 2 ** 96, type(uint256).max];
        bytes32 id = idOf(1);
        for (uint256 i = 0; i < amounts.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.AmountOutOfRange.selector, amounts[i]));
            channels.topUp(id, amounts[i]);
        }
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.AmountOutOfRange.selector, DEPOSIT + type(uint96).max));
        channels.topUp(id, type(uint96).max);
    }

    // ---- redeeming -----------------------------------------------------------------------------------------------

    function test_redeemPaysWhatTheVoucherAdds() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 30 ether);
        vm.expectEmit(address(channels));
        emit IPaymentChannels.Redeemed(idOf(1), 30 ether, v.receiptsRoot);
        vm.assertEq(redeemAs(PAYEE, v), 30 ether);
        vm.assertEq(redeemAs(PAYEE, voucher(1, 45 ether)), 15 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 45 ether);
        vm.assertEq(state(1).redeemed, 45 ether);
        vm.assertEq(octo.balanceOf(address(channels)), 55 ether);
    }

    function test_redeemByAnyonePaysThePayee() external {
        openChannel(1, DEPOSIT);
        redeemAs(STRANGER, voucher(1, DEPOSIT));
        vm.assertEq(octo.balanceOf(PAYEE), DEPOSIT);
        vm.assertEq(octo.balanceOf(STRANGER), 0);
    }

    function test_redeemRefusesReplayedAndSmallerVouchers() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        uint256[3] memory amounts = [uint256(0), 29 ether, 30 ether];
        for (uint256 i = 0; i < amounts.length; i++) {
            IPaymentChannels.Voucher memory v = voucher(1, amounts[i]);
            refuse(IPaymentChannels.Stale.selector, 1, amounts[i], 30 ether);
            channels.redeem(PAYEE, v);
        }
    }

    function test_redeemAboveTheDepositIsRefusedWholeAndStaysGood() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, DEPOSIT + 1);
        refuse(IPaymentChannels.Overdrawn.selector, 1, DEPOSIT + 1, DEPOSIT);
        channels.redeem(PAYEE, v);
        IPaymentChannels.Voucher memory most = voucher(1, type(uint256).max);
        refuse(IPaymentChannels.Overdrawn.selector, 1, type(uint256).max, DEPOSIT);
        channels.redeem(PAYEE, most);
        topUpAs(payer, 1, 1);
        vm.assertEq(redeemAs(PAYEE, v), DEPOSIT + 1);
    }

    function test_redeemRefusesAnotherKey() external {
        openChannel(1, DEPOSIT);
        uint256[2] memory keys = [SIGNER, payerKey]; // not even the payer's own wallet
        for (uint256 i = 0; i < keys.length; i++) {
            IPaymentChannels.Voucher memory v = voucherBy(keys[i], 1, 1 ether);
            refuse(IPaymentChannels.BadSignature.selector, 1);
            channels.redeem(PAYEE, v);
        }
    }

    function test_redeemRefusesAChangedVoucher() external {
        openChannel(1, DEPOSIT);
        for (uint256 what = 0; what < 4; what++) {
            IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
            if (what == 0) v.cumulativeAmount += 1;
            if (what == 1) v.receiptsRoot ^= bytes32(uint256(1));
            if (what == 2) v.r ^= bytes32(uint256(1));
            if (what == 3) v.vs ^= bytes32(uint256(1) << 255);
            refuse(IPaymentChannels.BadSignature.selector, 1);
            channels.redeem(PAYEE, v);
        }
    }

    function test_redeemRefusesAVoucherOfAnotherChannel() external {
        openChannel(1, DEPOSIT);
        openChannel(2, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        v.salt = bytes32(uint256(2));
        refuse(IPaymentChannels.BadSignature.selector, 2);
        channels.redeem(PAYEE, v);
    }

    function test_redeemRefusesAVoucherForAnotherPayee() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        bytes32 other = channels.channelIdOf(IPaymentChannels.Terms(payer, STRANGER, v.sessionKey, v.salt));
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.Overdrawn.selector, other, 1 ether, 0));
        channels.redeem(STRANGER, v);
    }

    function test_redeemRefusesAVoucherOfAnotherEscrowNetworkOrChain() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels twin = deployChannels(octo, "octo-test", PERIOD);
        IPaymentChannels foreign = deployChannels(octo, "octo-main", PERIOD);
        bytes32 root = keccak256("root");

        (bytes32 r, bytes32 vs) = compact(SESSION, foreign.voucherDigest(idOf(1), 1 ether, root));
        IPaymentChannels.Voucher memory v =
            IPaymentChannels.Voucher(payer, vm.addr(SESSION), bytes32(uint256(1)), 1 ether, root, r, vs);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);

        (v.r, v.vs) = compact(SESSION, twin.voucherDigest(twin.channelIdOf(termsOf(1)), 1 ether, root));
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);

        uint256 home = vm.getChainId();
        vm.chainId(home + 1);
        (v.r, v.vs) = compact(SESSION, channels.voucherDigest(idOf(1), 1 ether, root));
        vm.chainId(home);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    function test_redeemRefusesWhatIsNoSignature() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        // Zero; a high s that fits 255 bits; the high twin of a good one, which does not.
        bytes32[3] memory seconds_ =
            [bytes32(0), bytes32(order / 2 + 1), bytes32(order - (uint256(v.vs) & (type(uint256).max >> 1)))];
        for (uint256 i = 0; i < seconds_.length; i++) {
            v.vs = seconds_[i];
            refuse(IPaymentChannels.BadSignature.selector, 1);
            channels.redeem(PAYEE, v);
        }
        v.r = 0;
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    function test_redeemWithNobodysSessionKeyFindsNoChannel() external {
        // A signature that is none recovers the zero address: no channel can have it as its session key.
        IPaymentChannels.Voucher memory v = IPaymentChannels.Voucher(payer, address(0), 0, 1, 0, 0, 0);
        bytes32 id = channels.channelIdOf(IPaymentChannels.Terms(payer, PAYEE, address(0), 0));
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.Overdrawn.selector, id, 1, 0));
        channels.redeem(PAYEE, v);
    }

    function testFuzz_redeemPaysTheHighestVoucherOnce(uint96[8] calldata amounts, uint96 deposit) external {
        uint256 held = bound(deposit, 1, 1_000_000 ether);
        openChannel(1, held);
        uint256 highest;
        for (uint256 i = 0; i < amounts.length; i++) {
            uint256 amount = bound(amounts[i], 0, held + 1);
            IPaymentChannels.Voucher memory v = voucher(1, amount);
            if (amount > held) refuse(IPaymentChannels.Overdrawn.selector, 1, amount, held);
            else if (amount <= highest) refuse(IPaymentChannels.Stale.selector, 1, amount, highest);
            else highest = amount;
            channels.redeem(PAYEE, v);
        }
        vm.assertEq(octo.balanceOf(PAYEE), highest);
        vm.assertEq(closeAs(PAYEE, 1), held - highest);
    }

    function testFuzz_redeemRefusesOtherKeys(uint256 key, uint96 amount) external {
        key = bound(key, 1, type(uint128).max);
        vm.assume(key != SESSION);
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucherBy(key, 1, bound(amount, 1, DEPOSIT));
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    function testFuzz_redeemRefusesRandomSignatures(bytes32 r, bytes32 vs) external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        vm.assume(r != v.r || vs != v.vs);
        (v.r, v.vs) = (r, vs);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    // ---- batches -------------------------------------------------------------------------------------------------

    function test_batchPaysManyChannelsAtOnce() external {
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](3);
        for (uint256 i = 0; i < 3; i++) {
            openChannel(i, DEPOSIT);
            all[i] = voucher(i, (i + 1) * 1 ether);
        }
        vm.assertEq(channels.redeemBatch(PAYEE, all), 6 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 6 ether);
        vm.assertEq(state(2).redeemed, 3 ether);
    }

    function test_batchSkipsStaleOverdrawnClosedAndRepeated() external {
        for (uint256 i = 0; i < 4; i++) {
            openChannel(i, DEPOSIT);
        }
        redeemAs(STRANGER, voucher(0, 5 ether));
        closeAs(PAYEE, 3);
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](6);
        all[0] = voucher(0, 5 ether); // someone redeemed it first
        all[1] = voucher(1, DEPOSIT + 1); // above the deposit
        all[2] = voucher(2, 7 ether);
        all[3] = voucher(2, 7 ether); // twice
        all[4] = voucher(3, 1 ether); // closed
        all[5] = voucher(9, 1 ether); // never opened
        vm.assertEq(channels.redeemBatch(PAYEE, all), 7 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 12 ether);
        vm.assertEq(channels.redeemBatch(PAYEE, all), 0);
        vm.assertEq(channels.redeemBatch(PAYEE, new IPaymentChannels.Voucher[](0)), 0);
    }

    function test_batchRefusesABadSignature() external {
        openChannel(0, DEPOSIT);
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](2);
        all[0] = voucher(0, 1 ether);
        all[1] = voucherBy(SIGNER, 1, 1 ether);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeemBatch(PAYEE, all);
        vm.assertEq(octo.balanceOf(PAYEE), 0);
    }

    function test_batchNeverPaysAnotherPayeesChannel() external {
        openChannel(0, DEPOSIT);
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](1);
        all[0] = voucher(0, 1 ether);
        vm.assertEq(channels.redeemBatch(STRANGER, all), 0);
        vm.assertEq(octo.balanceOf(STRANGER), 0);
    }

    // ---- closing -------------------------------------------------------------------------------------------------

    function test_payeeClosesAtOnceAndThePayerGetsTheRest() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        vm.expectEmit(address(channels));
        emit IPaymentChannels.Closed(idOf(1), 30 ether, 70 ether);
        vm.assertEq(closeAs(PAYEE, 1), 70 ether);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether - 30 ether);
        vm.assertEq(octo.balanceOf(address(channels)), 0);
    }

    function test_payerWaitsForTheChallengePeriod() external {
        openChannel(1, DEPOSIT);
        refuse(IPaymentChannels.TooEarly.selector, 1, 0);
        this.closeByPayer(1);
        uint64 closesAt = uint64(vm.getBlockTimestamp()) + PERIOD;
        vm.expectEmit(address(channels));
        emit IPaymentChannels.CloseRequested(idOf(1), PAYEE, closesAt);
        requestClose(1);
        vm.warp(closesAt - 1);
        refuse(IPaymentChannels.TooEarly.selector, 1, closesAt);
        this.closeByPayer(1);
        vm.warp(closesAt);
        vm.assertEq(closeAs(STRANGER, 1), DEPOSIT);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether);
    }

    /// @dev External, so that an expected revert is this whole call and not the views before it.
    function closeByPayer(uint256 salt) external {
        closeAs(payer, salt);
    }

    function test_payeeRedeemsDuringTheChallengePeriodAndAfterIt() external {
        openChannel(1, DEPOSIT);
        requestClose(1);
        redeemAs(PAYEE, voucher(1, 40 ether));
        vm.warp(vm.getBlockTimestamp() + 10 * PERIOD);
        redeemAs(PAYEE, voucher(1, 50 ether));
        vm.assertEq(closeAs(payer, 1), 50 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 50 ether);
    }

    function test_secondRequestDoesNotMoveTheTime() external {
        openChannel(1, DEPOSIT);
        requestClose(1);
        uint64 closesAt = uint64(vm.getBlockTimestamp()) + PERIOD;
        vm.warp(vm.getBlockTimestamp() + 1 hours);
        address sessionKey = vm.addr(SESSION);
        refuse(IPaymentChannels.Closing.selector, 1, closesAt);
        vm.prank(payer);
        channels.requestClose(PAYEE, sessionKey, bytes32(uint256(1)));
    }

    function test_onlyThePayerRequestsClose() external {
        openChannel(1, DEPOSIT);
        address sessionKey = vm.addr(SESSION);
        bytes32 other = channels.channelIdOf(IPaymentChannels.Terms(STRANGER, PAYEE, sessionKey, bytes32(uint256(1))));
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.NotOpen.selector, other));
        vm.prank(STRANGER);
        channels.requestClose(PAYEE, sessionKey, bytes32(uint256(1)));
    }

    function test_closedIsForEver() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        closeAs(PAYEE, 1);
        IPaymentChannels.Channel memory held = state(1);
        vm.assertEq(held.deposit, 30 ether);
        vm.assertEq(held.closesAt, type(uint64).max);

        IPaymentChannels.Voucher memory v = voucher(1, 31 ether);
        IPaymentChannels.Terms memory terms = termsOf(1);
        bytes32 id = idOf(1);
        vm.warp(vm.getBlockTimestamp() + 1000 days);
        refuse(IPaymentChannels.Overdrawn.selector, 1, 31 ether, 30 ether);
        channels.redeem(PAYEE, v);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        channels.topUp(id, 1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        channels.close(terms);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(PAYEE);
        channels.close(terms);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(payer);
        channels.requestClose(PAYEE, terms.sessionKey, terms.salt);
    }

    function test_payeeCannotCloseWhatWasNeverOpened() external {
        IPaymentChannels.Terms memory terms = termsOf(1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(PAYEE);
        channels.close(terms);
        openChannel(1, DEPOSIT); // and so cannot spoil an opening
    }

    /// @dev The attack that was demonstrated on the sketch: let the challenge period run out on an empty channel, fund
    /// it, buy with vouchers, and close at once, before the seller can redeem.
    function test_armThenFundFails() external {
        address sessionKey = vm.addr(SESSION);
        bytes32 salt = bytes32(uint256(1));
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(payer);
        channels.requestClose(PAYEE, sessionKey, salt);

        // With a deposit of one unit the clock does start, but then no deposit comes in any more ...
        openChannel(1, 1);
        requestClose(1);
        uint64 closesAt = state(1).closesAt;
        vm.warp(closesAt + 1);
        bytes32 id = idOf(1);
        refuse(IPaymentChannels.Closing.selector, 1, closesAt);
        vm.prank(payer);
        channels.topUp(id, DEPOSIT);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, salt, DEPOSIT);

        // ... and once it is closed, never again.
        closeAs(payer, 1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        vm.prank(payer);
        channels.topUp(id, DEPOSIT);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, salt, DEPOSIT);
    }

    function testFuzz_payerAlwaysGetsTheRest(uint96 deposit, uint96 extra, uint96 owed, bool byPayee) external {
        uint256 held = bound(deposit, 1, 400_000 ether);
        uint256 more = bound(extra, 1, 400_000 ether);
        openChannel(1, held);
        topUpAs(payer, 1, more);
        uint256 spent = bound(owed, 0, held + more);
        if (spent != 0) redeemAs(PAYEE, voucher(1, spent));
        if (!byPayee) {
            requestClose(1);
            vm.warp(vm.getBlockTimestamp() + PERIOD);
        }
        closeAs(byPayee ? PAYEE : payer, 1);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether - spent);
        vm.assertEq(octo.balanceOf(PAYEE), spent);
        vm.assertEq(octo.balanceOf(address(channels)), 0);
    }

    // ---- construction and hashes ---------------------------------------------------------------------------------

    function test_challengePeriodHasBounds() external {
        uint64[2] memory periods = [uint64(0), 30 days + 1];
        for (uint256 i = 0; i < periods.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.ChallengePeriodOutOfRange.selector, periods[i]));
            this.deployWith(periods[i]);
        }
        vm.assertEq(channels.challengePeriod(), PERIOD);
        vm.assertEq(address(channels.token()), address(octo));
    }

    function deployWith(uint64 challengePeriod) external {
        deployChannels(octo, "octo-test", challengePeriod);
    }

    function testFuzz_hashesByHandAreThoseOfAbiEncode(IPaymentChannels.Terms calldata t, uint256 amount, bytes32 root)
        external
        view
    {
        bytes32 id = keccak256(
            abi.encode(
                keccak256("Channel(address escrow,address payer,address payee,address sessionKey,bytes32 salt)"),
                address(channels),
                t
            )
        );
        vm.assertEq(channels.channelIdOf(t), id);
        bytes32 said = keccak256(
            abi.encode(
                keccak256("Voucher(bytes32 channelId,uint256 cumulativeAmount,bytes32 receiptsRoot)"), id, amount, root
            )
        );
        vm.assertEq(
            channels.voucherDigest(id, amount, root),
            keccak256(abi.encodePacked("\x19\x01", channels.domainSeparator(), said))
        );
    }
}
